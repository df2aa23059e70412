"""The states that a run goes through, kept in its folder: saved on the way, found again by `--resume`."""

from __future__ import annotations

from typing import Any

from em_train.engine import checkpoint
from em_train.engine.errors import CheckpointError
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import RunFolder


class States:
    """Everything that changes during a run, under its name, and what must not: the data."""

    def __init__(self, folder: RunFolder, run: RunConfig, data: str, **parts: Any) -> None:
        """
        Args:
            folder: where checkpoints lie.
            run: how many are kept, and on how many processes a run may go on.
            data: fingerprint of what is learned from.
            parts: what has a `state_dict`.
        """
        self.folder, self.run, self.data, self.parts = folder, run, data, parts

    def begin(self, *, resume: bool) -> int:
        """The step after which the run goes on: with `resume` that of the newest state, else 0."""
        start, checkpoints = 0, self.folder.checkpoints
        if resume and checkpoint.exists(checkpoints):
            state = checkpoint.load(checkpoints, world=self.run.world)
            if state["data"] != self.data:
                raise CheckpointError(
                    f"{self.folder.path} was trained on other data: then {state['data']}, now "
                    f"{self.data}; give it the same volumes and labels, or start a new run with "
                    "another --out"
                )
            checkpoint.restore(self.parts, state, checkpoints)
            start = state["step"]
        else:
            self.save(0)  # a run that is killed early can be resumed too
        self.folder.rewind(start)
        return start

    def save(self, step: int, *, best: bool = False) -> None:
        """Keep the state after `step`; one process writes for all."""
        if self.folder.leads:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state["data"] = self.data
            keep = self.run.keep_checkpoints
            checkpoint.save(self.folder.checkpoints, step, state, keep=keep, best=best)

"""Checkpoints that survive a kill at any instant, that need no pickle to load, and are verified.

At every moment the newest name points to a whole file. A file that rotted since is found by its
checksums, which torch itself does not look at, and passed over for the one before it.
"""

from __future__ import annotations

import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from em_train.engine import distributed
from em_train.engine.atomic import point, replacing
from em_train.engine.errors import CheckpointError
from em_train.engine.progress import say

FORMAT = 2
DAMAGE = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)


def save(
    folder: Path, step: int, state: dict[str, Any], *, keep: int = 2, best: bool = False
) -> Path:
    """Write `step-<step>.pt` and point `last` to it; the newest `keep` and the best stay.

    With `best`, `best` is pointed to it too. Checkpoints of later steps go: they are damaged, for
    `load` passed over them, and will be written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    head = {"format": FORMAT, "step": step, "world": distributed.size()}
    try:
        with replacing(path) as temporary:
            torch.save(head | state, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"cannot write {path} ({str(error).splitlines()[0]}; {free:.0f} MiB free); the "
            "checkpoint before it is untouched: mend this, then go on with --resume"
        ) from error
    if best:
        point(folder / "best", path.name)
    point(folder / "last", path.name)
    kept = (folder / "best").resolve()
    paths = _steps(folder)
    end = paths.index(path) + 1
    for later in paths[end:]:
        later.unlink()
    for old in paths[:end][:-keep]:
        if old.resolve() != kept:
            old.unlink()
    return path


def load(folder: Path, *, world: str = "any", best: bool = False) -> dict[str, Any]:
    """The newest checkpoint that is whole, with `best` rather the best where there is one.

    With `world="same"`, one of as many processes as now.
    """
    problems, paths = [], _steps(folder)[::-1]
    if best and (folder / "best").exists():
        paths.insert(0, (folder / "best").resolve())
    for path in paths:
        try:
            state = read(path)
        except DAMAGE as error:
            if isinstance(error, CheckpointError):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(f"{path.name} is damaged ({reason})")
            continue
        if world == "same" and state["world"] != distributed.size():
            raise CheckpointError(
                f"{path} was written by {state['world']} processes, now there are "
                f"{distributed.size()}; go on with as many (--gpus or --processes "
                f"{state['world']}), or accept other rounding with --set run.world=any"
            )
        for problem in problems:
            say(f"{problem}; going on from {path.name} instead")
        return state
    raise CheckpointError(
        f"nothing to resume in {folder}: " + ("; ".join(problems) or "it holds no checkpoint")
    )


def read(path: Path) -> dict[str, Any]:
    """One checkpoint, verified; another format is refused."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return state


def initialise(networks: nn.Module, run: str | Path) -> None:
    """Give networks the averaged weights of the best checkpoint of a run, else of the newest."""
    folder = Path(run) / "checkpoints"
    if not exists(folder):
        raise CheckpointError(f"no checkpoint in {folder}; give --init the folder of a run")
    state = load(folder, best=True)
    average = state.get("average", {})
    weights = {k.removeprefix("module."): v for k, v in average.items() if k != "n_averaged"}
    _refuse_other_weights(networks, weights or state.get("networks", {}), folder)
    networks.load_state_dict(weights or state["networks"])


def restore(parts: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
    """Load every part's state; weights of another model are refused before anything is loaded."""
    for name, part in parts.items():
        if name not in state:
            raise CheckpointError(
                f"{folder} holds no {name}, only {', '.join(sorted(state))}; it is of another recipe"
            )
        if isinstance(part, nn.Module):
            _refuse_other_weights(part, state[name], folder)
    for name, part in parts.items():
        part.load_state_dict(state[name])


def _refuse_other_weights(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is unknown" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{folder} holds the weights of another model: {'; '.join(problems[:3])}{more}; "
            "choose the same model, or other weights"
        )


def exists(folder: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_steps(folder))


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, −1 without any; nothing is read."""
    steps = _steps(folder)
    return int(steps[-1].stem.removeprefix("step-")) if steps else -1


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))

"""`emtrain shortcut`: the proof of a run that is there, with the audit that trains for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_data import grey_range

from em_train.dense.audit import Audit, shuffle_audit
from em_train.dense.codes import open_run
from em_train.dense.report import prove_run
from em_train.dense.shortcut import Proof
from em_train.engine.progress import say
from em_train.engine.run_folder import RunFolder
from em_train.reading import open_at

COMMAND = "dense-ssl"


def prove_stored_run(
    run: Path,
    config: Any,
    train: Callable[[Any, RunFolder], bool],
    *,
    address: str | None = None,
    audit_steps: int,
    seed: int = 0,
) -> Proof | None:
    """The proof of the run in a folder; None when a signal stopped the audit.

    Args:
        run: folder of the run.
        config: its configuration.
        train: the recipe's `run`, for the audit.
        address: volume to prove it on; without it, the first one that the run was trained on.
        audit_steps: steps of the audit; 0 leaves it out.
        seed: other crops.
    """
    encoder, data = open_run(run)
    volume = open_at(address or data.volumes[0], data)
    if volume.nbytes <= data.memory_gib * 2**30:
        volume = volume.held_in_memory()  # a thousand crops are read
    audit: Audit | None = None
    if audit_steps:
        say(f"audit   {audit_steps} steps with context from unrelated places")
        audit = shuffle_audit(config, train, command=COMMAND, steps=audit_steps)
        if audit is None:
            return None
    return prove_run(
        encoder,
        volume,
        grey_range(volume),
        run,
        crop_vx=config.data.stack.size_vx,
        seed=seed,
        audit=audit,
    )

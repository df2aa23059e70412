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

from em_train.errors import CheckpointError
from em_train.progress import say
from em_train.whole import point, replacing

FORMAT = 1
DAMAGE = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write `step-<step>.pt`, point `last` to it, and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    try:
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, "step": step, **state}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"cannot write {path} ({str(error).splitlines()[0]}; {free:.0f} MiB free); the "
            "checkpoint before it is untouched: mend this, then go on with --resume"
        ) from error
    point(folder / "last", path.name)
    for old in _steps(folder)[:-keep]:
        old.unlink()
    return path


def load(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole."""
    problems = []
    for path in reversed(_steps(folder)):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(f"{path.name} is damaged ({reason})")
            continue
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        for problem in problems:
            say(f"{problem}; going on from {path.name} instead")
        return state
    raise CheckpointError(
        f"nothing to resume in {folder}: " + ("; ".join(problems) or "it holds no checkpoint")
    )


def exists(folder: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_steps(folder))


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))

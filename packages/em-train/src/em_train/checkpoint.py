"""Checkpoints that survive a kill at any instant, and that need no pickle to load.

A file is written under a temporary name, flushed to the disk, renamed, and the folder flushed: at
every moment the newest name points to a whole file.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from em_train.errors import CheckpointError

FORMAT = 1


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
            "checkpoint before it is good: make room, then go on with --resume"
        ) from error
    point(folder / "last", path.name)
    for old in _steps(folder)[:-keep]:
        old.unlink()
    return path


def load(folder: Path) -> dict[str, Any]:
    """The newest checkpoint that is whole; a damaged one is passed over for the one before it."""
    problems = []
    for path in reversed(_steps(folder)):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(f"{path.name} is damaged ({reason})")
            continue
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {state.get('format')!r}, this version reads {FORMAT}; "
                "use the version that wrote it"
            )
        return state
    raise CheckpointError(
        f"nothing to resume in {folder}: " + ("; ".join(problems) or "it holds no checkpoint")
    )


def exists(folder: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_steps(folder))


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` in one step."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    _flush_folder(link.parent)


class replacing:
    """Write a file under a temporary name and rename it over `path` when all went well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with self.temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)
        _flush_folder(self.path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of a process that was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

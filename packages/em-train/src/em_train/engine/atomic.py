"""Files that are whole or not there: written under a temporary name, flushed, then renamed.

The temporary name has the number of the process in it: a report of a run may be made while the run
itself writes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = re.compile(r"\..*?(?:\.(\d+))?\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed over `path` when all went well and removed otherwise."""
    if path.is_dir():  # a link to one would be replaced
        raise IsADirectoryError(f"{path} is a folder; name a file")
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to `target` in one step."""
    temporary = _temporary(link)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    flush_folder(link.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote, at any depth."""
    for path in folder.rglob(".*.tmp"):
        match = TEMPORARY.fullmatch(path.name)
        if match and not (match[1] and _is_another(int(match[1]))):
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_another(process: int) -> bool:
    """Whether a process runs on this machine, and is not this one."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is somebody else's
    return process != os.getpid()


def flush_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

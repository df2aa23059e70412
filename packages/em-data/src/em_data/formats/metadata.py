"""What is read beside the voxels, whatever stands there: damage is one error that names its file.

Metadata come from other people's programs and from broken disks. Any of it may be null, a list, a
text, or nested without end, and no list of checks foresees where a reader stumbles over that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from em_data.errors import (
    ExtraMissingError,
    ForkError,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
)

OURS = (VolumeFormatError, VolumeNotFoundError, VolumeReadError, ForkError, ExtraMissingError)


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Everything that fails inside says that `what`, a file or a part of one, is not understood."""
    try:
        yield
    except (*OURS, MemoryError):
        raise
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise VolumeReadError(
            f"{what} cannot be read: {reason}; check the path and its permissions"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise VolumeFormatError(
            f"{what} is not understood ({type(error).__name__}: {reason}); repair or restore it"
        ) from error


def listed(what: str, value: Any) -> list[Any]:
    """A list, refused where something else stands in its place or nothing is in it."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        found = "empty" if value in ([], ()) else f"{type(value).__name__} {value!r:.60}"
        raise VolumeFormatError(f"{what} is {found}; wanted a list of at least one: repair it")
    return list(value)


def below(what: str, name: Any) -> str:
    """A name that metadata give to a part of the volume, refused where it leads out of its folder."""
    if not isinstance(name, str):
        raise VolumeFormatError(f"{what} is {name!r:.60}; wanted a name: repair it")
    path = PurePosixPath(name.replace(os.sep, "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or "://" in name:
        raise VolumeFormatError(
            f"{what} is {name!r}, which lies outside of the volume's own folder; wanted a name "
            "inside of it: repair it"
        )
    return name

"""Where something may be written, so that nothing that somebody made is lost.

Every command that writes asks here first: what is read is never replaced, nothing is put into a store
that is there, and `overwrite` replaces a zarr store and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from em_data.errors import StoreExistsError

MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")  # one of them lies in every zarr folder
# What addresses begin with, one or more of them: `precomputed://`, `labels:`, `mitochondria=`.
BEFORE_PATH = re.compile(r"[\w .+-]+(://|:|=)")
# What lies in an array or group beside other ones: metadata, chunks, and what systems leave.
OWN = re.compile(r"zarr\.json|\.z(array|group|attrs|metadata)|c|OME|[\d.]+|.*\.partial|\.DS_Store")


def check_apart(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Refuse to write at `path` where that would touch one of the inputs or a store, or cannot be.

    Args:
        path: of the file or folder that will be written.
        inputs: addresses of what is read; `path` must not be one of them, hold one or lie in one.
    """
    if not str(path) or Path(path).name in ("", ".."):
        raise StoreExistsError(
            f"{str(path)!r} has no name to write under; name a place, such as out.zarr or runs/first"
        )
    real = Path(os.path.realpath(path))  # this follows links
    for address in inputs:
        for source in _paths_of(str(address)):
            how = _touches(real, source)
            if how:
                raise StoreExistsError(
                    f"{path} {how} {address}, which is read here; choose another place to write to"
                )
    for folder in real.parents:
        if any((folder / marker).is_file() for marker in MARKERS):
            raise StoreExistsError(
                f"{path} lies in the zarr store {folder}; choose a place outside of it"
            )
        if folder.exists() and not folder.is_dir():
            raise StoreExistsError(
                f"{path} cannot be written: {folder} is a file, not a folder; choose another place"
            )
    if Path(path).is_symlink() and not real.exists():
        raise StoreExistsError(
            f"{path} is a link to {Path(path).readlink()}, where nothing is; remove the link, or choose "
            "another name"
        )


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a place that is taken, but with `overwrite` for a zarr store."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise StoreExistsError(
            f"{path} exists already; choose another name, or replace it with --overwrite"
        )
    if path.is_symlink():
        raise StoreExistsError(
            f"{path} is a link to {path.readlink()}; to replace the store, give its own path"
        )
    if not _is_node(path):
        raise StoreExistsError(
            f"{path} is no zarr store, and --overwrite replaces nothing else; choose another name"
        )
    for inside in path.iterdir():
        if not OWN.fullmatch(inside.name) and not _is_node(inside):
            raise StoreExistsError(
                f"{path} holds {inside.name}, which is no part of a zarr store and would be lost; move "
                "it away, or choose another name"
            )


def _is_node(path: Path) -> bool:
    """Whether a folder is a zarr array or group."""
    return path.is_dir() and any((path / marker).is_file() for marker in MARKERS)


def _paths_of(address: str) -> Iterator[Path]:
    """The paths that an address may mean, with links followed; none for what is not on this machine."""
    rest = address
    while True:
        whole = rest.partition("::")[0]  # of HDF5
        # Labels may end in a value, addresses in options.
        for text in (whole, whole.rpartition("@")[0], whole.rpartition("?")[0]):
            with suppress(OSError, RuntimeError, ValueError):  # there is no such path
                if text:
                    yield Path(text).resolve(strict=True)
        before = BEFORE_PATH.match(rest)
        if before is None:
            return
        rest = rest[before.end() :]


def _touches(real: Path, source: Path) -> str:
    """How writing at a place would touch a source: in words, "" where it would not."""
    if _is_same(real, source):
        return "is"
    if any(_is_same(folder, source) for folder in real.parents):
        return "lies in"
    return "holds" if any(_is_same(folder, real) for folder in source.parents) else ""


def _is_same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, whatever they are called: mounts and disks may ignore case."""
    try:
        return a.samefile(b)
    except OSError:
        return a == b

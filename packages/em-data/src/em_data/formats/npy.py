"""What is read from files on this machine: one handle for each process, and `.npy`.

A handle is opened where it is used: it is not pickled, and a forked process opens its own, since
two processes would move one file position.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.volume import Volume, as_volume

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something opened at its first use in each process, and closed when nobody needs it."""

    def __init__(self, open: Callable[[], T]) -> None:
        self._open = open
        # The lock of a process id is new in that process: one that was held during a fork would
        # stay locked for ever in the child.
        self._locks: dict[int, threading.RLock] = {}
        self._opened: dict[int, T] = {}

    @property
    def lock(self) -> threading.RLock:
        """Held by whoever moves the file's position."""
        return self._locks.setdefault(os.getpid(), threading.RLock())

    def get(self) -> T:
        """This process's own."""
        pid = os.getpid()
        if pid not in self._opened:
            with self.lock:
                if pid not in self._opened:
                    opened = self._open()
                    if hasattr(opened, "close"):
                        weakref.finalize(self, opened.close)
                    self._opened[pid] = opened
        return self._opened[pid]

    def __reduce__(self) -> tuple[type[PerProcess[T]], tuple[Callable[[], T]]]:
        return PerProcess, (self._open,)


@dataclass(frozen=True)
class MappedArray:
    """An uncompressed array in a file, mapped into memory: any voxel can be read alone."""

    mapped: PerProcess[np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        # A copy, so that a file that disappears later is noticed here.
        return np.array(self.mapped.get()[index])


def mapped_array(open: Callable[[], np.ndarray]) -> MappedArray:
    """The array that `open` maps; it is called once now and once in every other process."""
    mapped = PerProcess(open)
    array = mapped.get()
    return MappedArray(mapped, array.shape, array.dtype)


def open_npy(path: Path) -> Volume:
    """The array in a `.npy` file."""
    try:
        array = mapped_array(partial(np.load, path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise VolumeFormatError(
            f"{path} cannot be read as .npy ({error}); it may be truncated or of another format"
        ) from error
    return as_volume(array, str(path), "npy")

"""Blocks to be written, in words that another process understands, and the pace of the work."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from em_data.geometry import Box
from em_data.writer.blockwise import BlockKey, BlockStore, attach_blocks

from em_train.engine.progress import console, meter
from em_train.engine.stop import StopRequest

# What a job makes: the voxels of a box for every image of the store, by its path ("" is the store
# itself).
BlockFunction = Callable[[Box], Mapping[str, np.ndarray]]


FAILURES = 5  # times that a block may take its worker down before it is given up


IN_A_ROW = 10  # workers that may end before any of them has finished a block


GRACE_SECONDS = 20.0  # for blocks under way when a signal comes; schedulers kill after 30


POLL_SECONDS = 0.2


EXPECTED = (OSError, ValueError, ImportError, FloatingPointError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What is to be written, in words that another process understands."""

    store: str
    """Path of the store that was begun with `em_data.begin_blocks`."""
    make: str
    """`package.module:function`; called with `arguments` in every process, it gives the function
    from a box of voxels to the arrays of all images there."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for it, as JSON can hold them."""
    threads: int = 1
    """Threads of every process; the sums of some operators depend on it, so it is part of the job."""


class BlockWriter:
    """Writes blocks in this process."""

    def __init__(self, job: BlockJob) -> None:
        module, _, name = job.make.partition(":")
        self.store = attach_blocks(job.store)
        self.compute: BlockFunction = getattr(importlib.import_module(module), name)(
            **job.arguments
        )
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(job.threads)

    def write(self, key: BlockKey) -> None:
        """Compute and write one block."""
        if self.store.is_done(key):  # by a worker that died before it could say so
            return
        if key.level:
            self.store.coarsen(key)
        else:
            self.store.write(key, self.compute(self.store.box(key)))


class Crew(Protocol):
    """Whoever writes blocks: this process, processes, or a Dask cluster."""

    def write(
        self, store: BlockStore, pending: Sequence[BlockKey], stop: StopRequest, pace: Pace
    ) -> bool:
        """Write these blocks of one level; False when a signal came before all were written."""

    def close(self) -> None:
        """End what was started."""


class Pace:
    """Counts voxels and says how fast they come and how long the rest takes."""

    def __init__(self, store: BlockStore, pending: Sequence[BlockKey], what: str) -> None:
        self._store, self._what = store, what
        self._began = time.monotonic()
        self._voxels, self._left = 0, sum(self._size(key) for key in pending)
        total = sum(1 for _ in store.keys(pending[0].level))
        self._done = total - len(pending)
        self._context = meter(what, total, self._done)

    def __enter__(self) -> Pace:
        self._meter = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def add(self, key: BlockKey) -> None:
        """One more block is written."""
        self._done += 1
        self._voxels += self._size(key)
        self._left -= self._size(key)
        rate = self._voxels / max(time.monotonic() - self._began, 1e-9)
        note = f"{rate / 1e6:.3g} million voxels/s"
        if not console.is_terminal:  # there a bar shows it
            note += f", {self._left / rate / 60:.1f} min left"
        self._meter.update(self._done, note)

    def _size(self, key: BlockKey) -> int:
        return math.prod(self._store.box(key).size_vx)

"""Memory that is used again: fresh memory for every block costs as much in page faults as reading it.

And what an allocator keeps of memory given back in pieces would not be part of any budget.
"""

from __future__ import annotations

import math
import mmap
import weakref
from typing import Any

import numpy as np

from em_data.geometry import Int3

LINE_BYTES = 64  # of a processor's cache
MOST = 1.02  # times as much memory for rows that begin with a line
# Private memory: pages that could be shared take half as long again to get and to give back. Windows
# has neither flag.
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Buffers:
    """Arrays whose memory returns when nobody refers to them any more, nor to a view of them."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array of any content."""
        count = math.prod(shape)
        memory = self._memory(max(1, count * dtype.itemsize))
        # Views of views of it refer to this array, since numpy does not see through a foreign buffer.
        array = np.frombuffer(memory, dtype, count)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)

    def take_rows(self, shape: Int3, dtype: np.dtype[Any]) -> np.ndarray:
        """An array of any content whose rows begin with a cache line, where that costs little.

        Crops and chunks, whose rows are short, are copied out of it and into it a tenth faster.
        """
        z, y, x = shape
        line = LINE_BYTES // dtype.itemsize
        padded = -(-x // line) * line
        if padded > MOST * x:
            return self.take(shape, dtype)
        return self.take((z, y, padded), dtype)[:, :, :x]

    def _memory(self, nbytes: int) -> mmap.mmap:
        while self._free:
            memory = self._free.pop()
            # One that is too small is let go: after a few blocks all are as large as the largest.
            if len(memory) >= nbytes:
                return memory
        return mmap.mmap(-1, nbytes, **PRIVATE)

"""Copy crops out of arrays in memory into one batch: the one place that knows em-kernels here.

`EM_KERNELS=0` forces numpy, `EM_KERNELS=1` insists on the compiled copy; without it the compiled one
is used where `em_kernels` is installed. A library that is there but does not load is an ImportError.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from functools import cache

import numpy as np

from em_data.geometry import Box, Int3


@cache
def kernels_in_use() -> bool:
    """Whether the compiled copy serves this process."""
    choice = os.environ.get("EM_KERNELS", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"EM_KERNELS is {choice!r}; wanted 0 (numpy), 1 (compiled) or unset")
    installed = choice != "0" and importlib.util.find_spec("em_kernels") is not None
    if choice == "1" and not installed:
        raise ImportError(
            "EM_KERNELS=1 asks for compiled operators, but em-kernels is not installed; "
            "install it with: pip install --no-build-isolation ./packages/em-kernels"
        )
    return installed


def cut(
    sources: Sequence[tuple[np.ndarray, Int3]],
    crop_vx: Int3,
    batch: np.ndarray,  # (B, Z, Y, X)
    threads: int = 1,
) -> None:
    """Fill a batch with the crops of `crop_vx` that begin at a place of an array each."""
    if not kernels_in_use():
        _copy(sources, crop_vx, batch)
        return
    from em_kernels.crops import gather_crops

    # One call for each run of crops from the same array, so that a volume in memory takes one.
    first = 0
    for last in range(1, len(sources) + 1):
        array = sources[first][0]
        if last == len(sources) or sources[last][0] is not array:
            run, out = sources[first:last], batch[first:last]
            if array.strides[-1] == array.itemsize:
                origins = np.array([origin for _, origin in run])
                gather_crops(array, origins, crop_vx, out=out, threads=max(1, threads))
            else:  # the compiled copy would need the whole array dense along x
                _copy(run, crop_vx, out)
            first = last


def _copy(sources: Sequence[tuple[np.ndarray, Int3]], crop_vx: Int3, batch: np.ndarray) -> None:
    for target, (array, origin) in zip(batch, sources, strict=True):
        target[:] = array[Box(origin, crop_vx).slices]

"""Many crops out of one resident block into one batch, for numpy and without torch.

A reader that keeps blocks of a volume in memory serves each batch from them. Threads copy without
the GIL, so that reading of the next block goes on meanwhile.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from em_kernels._crops import gather
except ImportError as error:
    raise ImportError(
        f"em_kernels could not load its module for crops: {error}; build it with"
        " `pip install --no-build-isolation ./packages/em-kernels`"
    ) from error

__all__ = ["gather_crops"]


def gather_crops(
    block: NDArray[Any],  # (Z, Y, X) or (C, Z, Y, X)
    origins: NDArray[np.int64],  # (N, 3) in voxels
    size_vx: tuple[int, int, int],  # (cz, cy, cx)
    *,
    out: NDArray[Any] | None = None,  # (N, cz, cy, cx) or (N, C, cz, cy, cx)
    threads: int = 1,
) -> NDArray[Any]:
    """Return the crops of `size_vx` at `origins`, in the type of the block.

    With `out` they are written there. The rows of the block along x must be dense; its other axes
    may have any strides.

    >>> block = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    >>> gather_crops(block, np.array([[0, 1, 2], [1, 0, 0]]), (1, 1, 2)).tolist()
    [[[[6, 7]]], [[[12, 13]]]]
    """
    if block.ndim not in (3, 4):
        raise ValueError(f"block must be (Z, Y, X) or (C, Z, Y, X), got shape {block.shape}")
    if block.dtype.hasobject:
        raise TypeError(f"block must hold numbers, got {block.dtype}")
    if block.shape[-1] > 1 and block.strides[-1] != block.itemsize:
        raise ValueError(
            f"block must be dense along x, got strides {block.strides}; use np.ascontiguousarray"
        )
    origins = np.asarray(origins)
    if origins.ndim != 2 or origins.shape[1] != 3 or origins.dtype.kind not in "iu":
        raise ValueError(
            f"origins must be integers (N, 3), got {origins.dtype} of shape {origins.shape}"
        )
    if len(size_vx) != 3 or min(size_vx) < 1:
        raise ValueError(f"size_vx must be three positive sizes (cz, cy, cx), got {size_vx}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    shape = (len(origins), *block.shape[:-3], *size_vx)
    if out is None:
        out = np.empty(shape, block.dtype)
    elif out.shape != shape or out.dtype != block.dtype or not out.flags.c_contiguous:
        raise ValueError(
            f"out must be dense {block.dtype} of shape {shape}, got {out.dtype} of shape {out.shape}"
        )
    elif not out.flags.writeable or np.may_share_memory(out, block):
        raise ValueError("out must be writable and must not overlap the block")
    channels = block if block.ndim == 4 else block[None]
    batch = out if block.ndim == 4 else out[:, None]
    gather(channels, np.ascontiguousarray(origins, dtype=np.int64), batch, threads)
    return out

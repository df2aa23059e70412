"""Coarser levels of an image: which there are, and how voxels are pooled into one."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np

from em_data.binning import as_stored, sum_dtype
from em_data.geometry import Float3, Int3, float3, int3

Pool = Literal["mean", "mode", "pick"]

SMALLEST_VX = 64  # the longest side of the coarsest level
# Twice the size of the finest axis is too coarse already, so axes meet at the geometric middle.
ANISOTROPY = 2**0.5


class PlannedLevel(NamedTuple):
    """One resolution of an image."""

    shape: Int3
    voxel_size_nm: Float3
    origin_nm: Float3  # centre of voxel (0, 0, 0)
    step: Int3  # voxels of the level before that become one, along each axis


def plan_levels(
    shape: Int3, voxel_size_nm: Float3, origin_nm: Float3, pool: Pool
) -> list[PlannedLevel]:
    """Levels of half the resolution until the longest side is at most 64 voxels.

    An axis is halved only while its voxels are not larger than those of the finest axis by more
    than √2, so anisotropic volumes approach cubes.

    >>> levels = plan_levels((40, 512, 512), (40, 8, 8), (0, 0, 0), "mean")
    >>> [level.shape for level in levels]
    [(40, 512, 512), (40, 256, 256), (40, 128, 128), (20, 64, 64)]
    >>> levels[1].origin_nm
    (0.0, 4.0, 4.0)
    """
    levels = [PlannedLevel(int3(shape), float3(voxel_size_nm), float3(origin_nm), (1, 1, 1))]
    while max(levels[-1].shape) > SMALLEST_VX:
        shape, size_nm, origin_nm, _ = levels[-1]
        finest = min(s for s, n in zip(size_nm, shape, strict=True) if n > 1)
        step = int3(
            [
                2 if n > 1 and s < finest * ANISOTROPY else 1
                for s, n in zip(size_nm, shape, strict=True)
            ]
        )
        # What is pooled lies in the middle of its voxels, a picked voxel where it was.
        shift = [0.0 if pool == "pick" else (k - 1) / 2 for k in step]
        levels.append(
            PlannedLevel(
                int3([-(-n // k) for n, k in zip(shape, step, strict=True)]),
                float3([s * k for s, k in zip(size_nm, step, strict=True)]),
                float3([o + d * s for o, d, s in zip(origin_nm, shift, size_nm, strict=True)]),
                step,
            )
        )
    return levels


def pool_voxels(fine: np.ndarray, step: Int3, pool: Pool) -> np.ndarray:
    """Voxels of the next level, (…, Z, Y, X) -> (…, ⌈Z/k⌉, ⌈Y/k⌉, ⌈X/k⌉).

    The mean of integers is rounded, that of bool true where at least half of the voxels are. The mode
    is the most frequent value, among equally frequent ones that which comes first.

    >>> pool_voxels(np.array([[[3, 7], [7, 3]]]), (1, 2, 2), "mode")
    array([[[3]]])
    """
    if pool == "pick":
        return fine[..., :: step[0], :: step[1], :: step[2]]
    missing = [(0, -n % k) for n, k in zip(fine.shape[-3:], step, strict=True)]
    if any(after for _, after in missing):
        fine = np.pad(fine, [(0, 0)] * (fine.ndim - 3) + missing, mode="edge")
    corners = [
        fine[..., z :: step[0], y :: step[1], x :: step[2]]
        for z, y, x in itertools.product(*map(range, step))
    ]
    return _mode(corners) if pool == "mode" else _mean(corners)


def _mean(corners: list[np.ndarray]) -> np.ndarray:
    dtype = corners[0].dtype
    total = np.zeros(corners[0].shape, sum_dtype(dtype))
    for corner in corners:
        total += corner
    total /= len(corners)
    return as_stored(total, dtype)


def _mode(corners: list[np.ndarray]) -> np.ndarray:
    best = corners[0].copy()
    most = np.zeros(best.shape, np.uint8)
    for candidate in corners:
        count = np.zeros(best.shape, np.uint8)
        for corner in corners:
            count += corner == candidate
        better = count > most
        best[better] = candidate[better]
        most[better] = count[better]
    return best

"""Some patches of a volume, and features of slices averaged over them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from em_data import Box, GreyRange, Volume
from em_data.geometry import Int3, int3
from em_models.windows import token_grid
from torch import Tensor


class Slab(NamedTuple):
    """Some patches of a volume: a box of the grid of its patches."""

    volume: Volume
    grey: GreyRange
    patch_vx: Int3
    origin: Int3  # in patches
    size: Int3

    @property
    def box(self) -> Box:
        """The same in voxels."""
        scaled = [
            tuple(n * p for n, p in zip(one, self.patch_vx, strict=True))
            for one in (self.origin, self.size)
        ]
        return Box(int3(scaled[0]), int3(scaled[1]))


def patch_grid(volume: Volume, patch_vx: Int3) -> Int3:
    """Patches of a volume along each axis; one that holds none is refused by its name."""
    try:
        return token_grid(volume.shape, patch_vx)
    except ValueError as error:
        raise ValueError(
            f"{volume.source}: {error}; give a larger volume, or a run with smaller patches"
        ) from None


def mean_of_planes(slab: Slab, features: Any, step: int, reach_vx: int) -> Tensor:
    """Features of slices (Y, X) -> (D, y, x) at every `step`-th pixel, averaged over patches.

    Slices are read with so much around them as features depend on, where the volume has it.
    """
    (pz, py, px), shown, height_width = slab.patch_vx, slab.box, slab.volume.shape[1:]
    low = [
        max(0, o - -(-reach_vx // p) * p)
        for o, p in zip(shown.origin_vx[1:], (py, px), strict=True)
    ]
    ends = (o + n for o, n in zip(shown.origin_vx[1:], shown.size_vx[1:], strict=True))
    high = [min(n, end + reach_vx) for n, end in zip(height_width, ends, strict=True)]
    rows, columns = (
        slice((o - first) // step, (o - first + n) // step)
        for o, first, n in zip(shown.origin_vx[1:], low, shown.size_vx[1:], strict=True)
    )
    size = (1, high[0] - low[0], high[1] - low[1])
    found: list[Tensor] = []
    for z in range(shown.size_vx[0]):
        plane = Box((shown.origin_vx[0] + z, low[0], low[1]), size)
        image = torch.from_numpy(slab.grey.unit(slab.volume.read(plane)))[0]
        with torch.inference_mode():
            inner = features(image)[:, rows, columns]
            means = F.avg_pool2d(inner[None], (py // step, px // step))[0]
        if z % pz == 0:
            found.append(means / pz)
        else:
            found[-1] = found[-1] + means / pz
    return torch.stack(found, 1)

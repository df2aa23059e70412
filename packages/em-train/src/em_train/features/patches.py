"""Vectors for every patch of a volume: of frozen encoders, and of what needs no learning.

Whatever it is, it comes as one map (D, z, y, x) over the same patches, so that all are read out alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from em_data.geometry import int3
from em_models import FilterBank, FilterBankConfig
from em_models.patches import patchify
from em_models.positions import sincos, token_places
from torch import Tensor

from em_train.features.pooling import pooled
from em_train.features.slab import Slab, mean_of_planes

COMPONENTS = 64  # of raw patches
PLACE_CHANNELS = 48  # of positions


# What needs no learning ---------------------------------------------------------------------------


def raw_patches(fit: Slab, score: Slab) -> tuple[Tensor, Tensor]:
    """The principal components of the voxels of patches, found on those to fit."""
    maps = [_voxels_of_patches(slab) for slab in (fit, score)]  # (D, z, y, x)
    x = maps[0].flatten(1).T.double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    basis = vectors[:, -COMPONENTS:]
    fitted, scored = (
        ((one.flatten(1).T.double() - mean) @ basis).T.unflatten(1, one.shape[1:]).float()
        for one in maps
    )
    return fitted, scored


def bank_maps(slab: Slab) -> Tensor:
    """The mean over a patch of the features of its pixels, and means of that over wider windows."""
    bank = FilterBank(FilterBankConfig())
    margin = [bank.config.margin] * 4

    def features(plane: Tensor) -> Tensor:
        return bank.compute(F.pad(plane[None, None], margin, mode="reflect"))[0]

    maps = mean_of_planes(slab, features, 1, bank.config.margin)  # (F, z, y, x)
    return pooled(maps.transpose(0, 1)).transpose(0, 1)


def places(slab: Slab) -> Tensor:
    """Where a patch lies in the volume, and nothing else."""
    grid = int3([o + n for o, n in zip(slab.origin, slab.size, strict=True)])
    at = token_places(grid, (1, 1, 1)).unflatten(0, grid)
    z, y, x = (slice(o, None) for o in slab.origin)
    inner = at[z, y, x].flatten(0, 2)
    channels = torch.cat([inner, sincos(inner, PLACE_CHANNELS)], 1)
    return channels.T.unflatten(1, slab.size)


def _voxels_of_patches(slab: Slab) -> Tensor:
    image = torch.from_numpy(slab.grey.unit(slab.volume.read(slab.box)))
    return patchify(image[None, None], slab.patch_vx)[0].T.unflatten(1, slab.size)

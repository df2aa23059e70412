"""A trained network over volumes of any size: its tiles, and what it says about the voxels of a box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from em_data import Box, GreyRange, Volume
from em_data.writer.tiling import Model, TileGrid, predict_block
from torch import Tensor, nn

from em_train.engine.precision import Precision, autocast

TILE_VX = 512  # side of tiles, at most; the halo around them is computed in vain
HALOS = 6  # in a side, about: then the network is given 1.8 times what it is asked for
DEPTH_VX = 16  # slices of the tiles of a 3D model


def by_slice(model: nn.Module) -> bool:
    """Whether a network takes slices as channels and speaks of the middle one."""
    config: Any = model.config
    return hasattr(config, "slices")


def grid_of(model: nn.Module, tile_vx: int = TILE_VX, depth_vx: int = DEPTH_VX) -> TileGrid:
    """Tiles with all around them that the model looks at, so that they meet without a seam."""
    config: Any = model.config
    if by_slice(model):
        halo, stride = config.halo, config.stride
        side = -(-tile_vx // stride) * stride
        return TileGrid(
            tile_vx=(1, side, side),
            halo_vx=(config.slices // 2, halo, halo),
            stride_vx=(1, stride, stride),
        )
    z, y, x = (
        -(-n // s) * s for n, s in zip((depth_vx, tile_vx, tile_vx), config.stride, strict=True)
    )
    return TileGrid(tile_vx=(z, y, x), halo_vx=config.halo, stride_vx=config.stride)


def tile_side(model: nn.Module, shape: Sequence[int]) -> int:
    """The side of the tiles of a volume (z, y, x), which depends on nothing else.

    A power of two, so that blocks of chunks hold whole tiles; larger for networks that look further.
    """
    config: Any = model.config
    halo = config.halo if by_slice(model) else max(config.halo)
    side = 1 << max(7, math.ceil(math.log2(max(1, HALOS * halo))))
    return min(side, TILE_VX, max(shape[1:]))


def tile_model(
    model: nn.Module,
    grey: GreyRange,
    device: torch.device,
    precision: Precision = "auto",
    *,
    clip: bool = True,
) -> Model:
    """Raw tiles as stored (B, Z, Y, X) -> logits (B, C, z, y, x), as `em_data.writer.tiling` asks for them.

    With `clip` grey values beyond the range become its ends, as in training with `Batch.image()`.
    """
    config: Any = model.config

    @torch.inference_mode()
    def run(tiles: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(grey.unit(tiles, clip=clip)).to(device)
        with autocast(precision, device):
            if by_slice(model):
                halo = slice(config.halo, -config.halo)
                logits = model(image)[:, :, None, halo, halo]
            else:
                logits = model(image[:, None])
        found: np.ndarray = logits.float().cpu().numpy()
        return found

    return run


def predict_logits(
    model: nn.Module,
    volume: Volume,
    grey: GreyRange,
    box: Box,
    device: torch.device,
    precision: Precision = "auto",
) -> Tensor:
    """Logits of every voxel of a box: (C, Z, Y, X)."""
    grid = grid_of(model, min(TILE_VX, max(box.size_vx[1:])), box.size_vx[0])
    run = tile_model(model, grey, device, precision)
    return torch.from_numpy(predict_block(volume, run, grid, box))

"""Contrast-limited adaptive histogram equalisation (CLAHE; Zuiderveld, Graphics Gems IV, 1994).

Every tile of a slice gets the curve that spreads its grey values evenly, but never steeper than the
clip limit, lest noise in empty places be blown up. Between the middles of tiles the curves are mixed.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 256


def clahe(slices: Tensor, *, tile_vx: int = 64, clip: float = 3.0) -> Tensor:
    """Equalise the contrast of every slice by itself: (…, Y, X) in [0, 1] -> the same in [0, 1].

    Args:
        slices: whole slices or crops. They are told apart in 256 grey values.
        tile_vx: side of a tile; a slice is divided into as many as fit best, at least one.
        clip: how often a grey value may count, as a multiple of its even share; 1 changes least.
    """
    if tile_vx < 1 or clip < 1:
        raise ValueError(f"tile_vx is {tile_vx} and clip {clip}; wanted at least 1 of both")
    images = slices.flatten(0, -3) if slices.dim() > 2 else slices[None]  # (N, Y, X)
    n, height, width = images.shape
    bins = (images * (BINS - 1)).add_(0.5).int().clamp_(0, BINS - 1)
    rows, y0, y1, wy = _tiles(height, tile_vx, slices.device)
    columns, x0, x1, wx = _tiles(width, tile_vx, slices.device)
    down, across = int(rows[-1]) + 1, int(columns[-1]) + 1
    slice_of = torch.arange(n, dtype=torch.int32, device=slices.device)[:, None, None] * down

    def place(y: Tensor, x: Tensor) -> Tensor:
        """Where the curves of tiles (Y,), (X,) hold the grey values of the voxels: (N · Y · X,)."""
        return (bins + (slice_of + y[:, None]) * (across * BINS)).add_(x * BINS).flatten()

    counts = torch.bincount(place(rows, columns), minlength=n * down * across * BINS)
    share = counts.view(-1, BINS).float()
    share /= share.sum(-1, keepdim=True)
    limit = clip / BINS
    excess = (share - limit).clamp(min=0).sum(-1, keepdim=True)
    curves = (share.clamp(max=limit) + excess / BINS).cumsum(-1).clamp(max=1).flatten()

    corners = [
        curves.index_select(0, place(y, x)).view_as(images) for y in (y0, y1) for x in (x0, x1)
    ]
    above, below = corners[0].lerp_(corners[1], wx), corners[2].lerp_(corners[3], wx)
    return above.lerp_(below, wy[:, None]).view_as(slices)


def _tiles(
    length: int, tile_vx: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis: the tile of every voxel, the tiles whose curves it mixes, and how: (L,) each."""
    count = max(1, round(length / tile_vx))
    places = torch.arange(length, device=device)
    middle = (places + 0.5) * count / length - 0.5
    first = middle.floor()
    near, far = (tile.clamp(0, count - 1).int() for tile in (first, first + 1))
    return (places * count // length).int(), near, far, middle - first

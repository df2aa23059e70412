"""Feature maps of volumes of any size, window by window, without seams.

A transformer that learned on crops of one size is shown windows of that size. They lie on a lattice
that depends on the shape of the volume alone, overlap, and are mixed with weights that fall to nothing
at their faces: where one window ends its neighbours have long taken over. Any box of the map can be
asked for by itself and holds what the whole map would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from em_models.patches import Int3
from em_models.vit3d import Vit3d, Voxels

Read = Callable[[Int3, Int3], Tensor]  # origin and size in voxels -> (Z, Y, X)


def token_grid(shape_vx: Int3, patch_vx: Int3) -> Int3:
    """Whole patches along each axis of a volume; the rest at its end has no token."""
    z, y, x = (n // p for n, p in zip(shape_vx, patch_vx, strict=True))
    if min(z, y, x) < 1:
        raise ValueError(
            f"volume of {tuple(shape_vx)} voxels is smaller than a patch of {tuple(patch_vx)}"
        )
    return z, y, x


@torch.inference_mode()
def dense_features(
    encoder: Vit3d,
    read: Read,
    shape_vx: Int3,
    *,
    window_vx: Int3,
    overlap: float = 0.5,
    layers: Sequence[int] = (-1,),
    box: tuple[Int3, Int3] | None = None,
    scale: float | None = None,
    shift: float = 0.0,
    voxel_size_nm: tuple[float, float, float] | None = None,
) -> Tensor:
    """Vectors of all tokens of a volume, or of a box of them: (L · width, z, y, x) float32.

    Args:
        encoder: in evaluation mode.
        read: gives voxels of the volume, as stored, by origin and size.
        shape_vx: of the volume.
        window_vx: what the encoder is shown at once, best as in training; cut down where the volume
            is smaller.
        overlap: share of a window that the next one along an axis shows again.
        layers: as of `Vit3d.get_intermediate_features`, one after another in the channels.
        box: origin and size in tokens; without it all.
        scale, shift: stored · scale + shift is in [0, 1]; without them the range of the type.
        voxel_size_nm: of the volume.
    """
    patch, width = encoder.config.patch_vx, encoder.config.width
    grid = token_grid(shape_vx, patch)
    origin, size = box or ((0, 0, 0), grid)
    if any(o < 0 or n < 1 or o + n > g for o, n, g in zip(origin, size, grid, strict=True)):
        raise ValueError(
            f"box of {tuple(size)} tokens at {tuple(origin)} leaves the map of {grid} tokens"
        )
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap:g}; wanted 0 ≤ share < 1")
    window = [max(1, min(w // p, g)) for w, p, g in zip(window_vx, patch, grid, strict=True)]
    starts = [
        [s for s in lattice(g, w, overlap) if s < o + n and s + w > o]
        for g, w, o, n in zip(grid, window, origin, size, strict=True)
    ]
    device = next(encoder.parameters()).device
    bump = weights(window)  # (z, y, x)
    total = torch.zeros(len(layers) * width, *size)
    weight = torch.zeros(tuple(size))
    factor = None if scale is None else torch.full((1,), scale, device=device)
    offset = None if scale is None else torch.full((1,), shift, device=device)
    for start in itertools.product(*starts):
        at = [s * p for s, p in zip(start, patch, strict=True)]
        extent = [w * p for w, p in zip(window, patch, strict=True)]
        voxels = read(_int3(at), _int3(extent))[None, None].to(device)
        found = encoder.get_intermediate_features(
            Voxels(voxels, factor, offset, voxel_size_nm), layers
        )
        maps = torch.cat([found[layer][0] for layer in layers], 1).float().cpu()
        maps = maps.T.unflatten(1, window)
        inner, outer = [], []
        for s, w, o, n in zip(start, window, origin, size, strict=True):
            low, high = max(s, o), min(s + w, o + n)
            inner.append(slice(low - s, high - s))
            outer.append(slice(low - o, high - o))
        into, part = tuple(outer), tuple(inner)
        total[:, *into] += maps[:, *part] * bump[part]
        weight[into] += bump[part]
    return total / weight


def lattice(tokens: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis; the last one ends with the axis.

    >>> lattice(20, 8, 0.5)
    [0, 4, 8, 12]
    >>> lattice(18, 8, 0.5)
    [0, 4, 8, 10]
    """
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, tokens - window, step), tokens - window]


def weights(window: Sequence[int]) -> Tensor:
    """How much a window counts at each of its tokens, most in the middle: (z, y, x)."""
    whole = torch.ones(())
    for n in window:
        along = torch.sin(torch.pi * (torch.arange(n) + 0.5) / n).square()
        whole = whole[..., None] * along
    return whole


def _int3(values: Sequence[int]) -> Int3:
    z, y, x = values
    return z, y, x

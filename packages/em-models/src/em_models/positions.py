"""Where tokens lie, in physical units, and what a transformer is told about it.

Places are counted in units of `token_nm`, a pitch of tokens that the model was trained with: a volume
with other voxels has its tokens at other places, not at other numbers. Where nothing is known of the
voxels, tokens are counted.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from em_models.patches import Int3

Float3 = tuple[float, float, float]
SINCOS_BASE = 10_000.0  # He et al. 2022, Masked Autoencoders Are Scalable Vision Learners
ROTARY_BASE = 100.0  # a volume has tens of tokens along an axis, not thousands


def token_places(
    grid: Int3,
    patch_vx: Int3,
    *,
    voxel_size_nm: Float3 | None = None,
    token_nm: float | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Centres of all tokens of a grid, x fastest: (N, 3) float32 in units of `token_nm`.

    >>> token_places((1, 1, 2), (4, 8, 8), voxel_size_nm=(16, 8, 8), token_nm=64)[1].tolist()
    [0.5, 0.5, 1.5]
    """
    pitch = (1.0, 1.0, 1.0)
    if voxel_size_nm is not None and token_nm is not None:
        sides = zip(patch_vx, voxel_size_nm, strict=True)
        z, y, x = (p * s / token_nm for p, s in sides)
        pitch = (z, y, x)
    axes = [
        (torch.arange(n, device=device, dtype=torch.float32) + 0.5) * step
        for n, step in zip(grid, pitch, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def frequencies(count: int, base: float, device: torch.device) -> Tensor:
    """Radians per unit of length: (count,), from 1 down to nearly 1/base."""
    return base ** -(torch.arange(count, device=device, dtype=torch.float32) / max(1, count))


def sincos(places: Tensor, width: int) -> Tensor:
    """Sines and cosines of places (N, 3), a third of the channels for each axis: (N, width).

    Channels that are left over are 0.
    """
    count = width // 6
    angles = places[..., None] * frequencies(count, SINCOS_BASE, places.device)  # (N, 3, count)
    waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
    return F.pad(waves, (0, width - 6 * count))


def interpolated(places: Tensor, tables: Tensor) -> Tensor:
    """Learned vectors of places (N, 3) from tables (3, L, width), one for each axis: (N, width).

    Entry i of a table belongs to the place i + ½; between two entries it is linear, and beyond the
    last one constant.
    """
    last = tables.shape[1] - 1
    at = (places - 0.5).clamp(0, last)
    below = at.floor().long().clamp(max=max(0, last - 1))
    part = (at - below)[..., None].to(tables.dtype)  # (N, 3, 1)
    above = (below + 1).clamp(max=last)
    axis = torch.arange(3, device=places.device)
    return torch.lerp(tables[axis, below], tables[axis, above], part).sum(1)


def rotary(places: Tensor, channels: int, *, registers: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which the pairs of channels of a head are turned: two (R + N, channels/2).

    A third of the pairs turns with each axis (Su et al. 2021, RoFormer); pairs that are left over, and
    registers, are not turned.
    """
    count = channels // 6
    angles = places[..., None] * frequencies(count, ROTARY_BASE, places.device)  # (N, 3, count)
    angles = F.pad(angles.flatten(1), (0, channels // 2 - 3 * count, registers, 0))
    return angles.cos(), angles.sin()


def turned(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, H, N, channels) turned by `rotary`, of all samples or of each.

    Channel i and channel i + channels/2 are a pair.
    """
    cosine, sine = (one.to(x.dtype) for one in by)
    found: Tensor = _Turn.apply(x, cosine, sine)
    return found


class _Turn(torch.autograd.Function):
    """A rotation, whose way back is the rotation by the opposite angle: half the passes of its parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate(x, cosine, sine, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotate(gradient, cosine, sine, -1.0), None, None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor, sign: float) -> Tensor:
    first, second = x.chunk(2, -1)
    found = torch.empty_like(x)
    one, other = found.chunk(2, -1)
    torch.mul(first, cosine, out=one).addcmul_(second, sine, value=-sign)
    torch.mul(second, cosine, out=other).addcmul_(first, sine, value=sign)
    return found

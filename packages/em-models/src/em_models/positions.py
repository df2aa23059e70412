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


def rotary(places: Tensor, channels: int, *, registers: int = 0) -> Tensor:
    """Numbers on the unit circle by which the pairs of channels of a head are turned: (R + N, channels/2).

    A third of the pairs turns with each axis (Su et al. 2021, RoFormer); pairs that are left over, and
    registers, are not turned.
    """
    count = channels // 6
    angles = places[..., None] * frequencies(count, ROTARY_BASE, places.device)  # (N, 3, count)
    angles = F.pad(angles.flatten(1), (0, channels // 2 - 3 * count, registers, 0))
    return torch.polar(torch.ones_like(angles), angles)


def turned(qkv: Tensor, by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned by `rotary`, and values: (B, N, 3, H, channels) -> (B, H, N, channels) each.

    Channels 2i and 2i + 1 are a pair, a complex number. `by` is (N, channels/2), or (B, N, channels/2)
    where samples have places of their own.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Turn.apply(qkv, by[..., None, :])
    return found


class _Turn(torch.autograd.Function):
    """The way back is the turn by the opposite angle, written to where the gradient of qkv will lie."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, by: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(by)
        turned = torch.empty_like(qkv[:, :, :2])
        for part in (0, 1):
            _turn(qkv[:, :, part], by, out=turned[:, :, part])
        q, k = turned.permute(2, 0, 3, 1, 4)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (by,) = ctx.saved_tensors
        of_q, of_k, of_v = (one.transpose(1, 2) for one in gradients)  # (B, N, H, channels)
        b, n, heads, channels = of_q.shape
        found = of_q.new_empty(b, n, 3, heads, channels)
        back = by.conj().resolve_conj()
        _turn(of_q, back, out=found[:, :, 0])
        _turn(of_k, back, out=found[:, :, 1])
        found[:, :, 2] = of_v
        return found, None


def _turn(x: Tensor, by: Tensor, *, out: Tensor) -> None:
    x = x if x.stride(-1) == 1 else x.contiguous()
    if x.dtype == by.real.dtype:
        torch.mul(_complex(x), by, out=_complex(out))
    else:  # there are no complex numbers of 16 bits
        out.copy_(torch.view_as_real(_complex(x.to(by.real.dtype)) * by).flatten(-2))


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))

"""What happens to single slices of real volumes: lost, out of focus, pale, folded, stitched.

Only grey values change. The tissue is where it was, so labels and their valid mask stay, and a
network learns to bridge the damage. Shifted slices are in `warp.py`: there labels follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from em_data.augment.blur import blur

KINDS = 5  # missing, blurred, faded, stitched, folded
NUMBERS = KINDS + 8  # uniform numbers per slice: whether each kind befalls it, and how


@dataclass(frozen=True, kw_only=True)
class DefectConfig:
    """Probabilities that a slice is damaged, each kind by itself, and how badly at most."""

    missing: float = 0.0
    """Probability that a slice is missing: black, half the time only beyond a torn edge. Samples of
    one slice keep it."""
    blurred: float = 0.0
    """Probability that a slice is out of focus."""
    blurred_vx: float = 2.5
    """Largest deviation of that blur, in voxels."""
    faded: float = 0.0
    """Probability that a slice has lost contrast and is darker or brighter than the others."""
    stitched: float = 0.0
    """Probability that a slice is stitched from tiles of another brightness and contrast."""
    folded: float = 0.0
    """Probability that a dark fold runs through a slice."""
    fold_vx: float = 40.0
    """Largest width of a fold, in voxels."""

    def __post_init__(self) -> None:
        for name in ("missing", "blurred", "faded", "folded", "stitched"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a probability, wanted 0 to 1, got {getattr(self, name)}; change it"
                )
        for name in ("blurred_vx", "fold_vx"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}; enlarge it")


def damage(slices: Tensor, uniform: Tensor, config: DefectConfig) -> Tensor:
    """Blur, fade, fold and stitch: changes `slices` in place and returns them.

    Args:
        slices: (B, Z, Y, X) in [0, 1].
        uniform: (B, Z, `NUMBERS`) from `augment.draw`, on the CPU.
        config: what may happen.
    """

    def defocus(images: Tensor, how: Tensor) -> Tensor:
        return blur(images, config.blurred_vx * (0.4 + 0.6 * how[:, 0]), config.blurred_vx)

    def crease(images: Tensor, how: Tensor) -> Tensor:
        return fold(images, how, config.fold_vx)

    kinds: tuple[tuple[float, Callable[[Tensor, Tensor], Tensor]], ...] = (
        (config.blurred, defocus),
        (config.faded, fade),
        (config.stitched, stitch),
        (config.folded, crease),
    )
    for kind, (probability, change) in enumerate(kinds, 1):
        b, z = (uniform[..., kind] < probability).nonzero(as_tuple=True)
        if len(b):
            how = uniform[b, z, KINDS:].to(slices.device)
            b, z = b.to(slices.device), z.to(slices.device)
            slices[b, z] = change(slices[b, z], how).clamp_(0, 1)
    return slices


def lose(slices: Tensor, uniform: Tensor, config: DefectConfig) -> Tensor:
    """Make slices missing, in place; the last step, so that what is missing is truly black."""
    b, z = (uniform[..., 0] < config.missing).nonzero(as_tuple=True)
    if len(b) and slices.shape[1] > 1:
        how = uniform[b, z, KINDS:].to(slices.device)
        b, z = b.to(slices.device), z.to(slices.device)
        across, _ = _bent_line(slices[b, z], how)
        kept = (how[:, 4, None, None] > 0.5) & (across > 0)
        slices[b, z] = slices[b, z] * kept
    return slices


def fade(images: Tensor, how: Tensor) -> Tensor:
    """Less contrast, about a mean that is shifted: (N, Y, X), (N, 8)."""
    contrast, brightness = how[:, 0, None, None], how[:, 1, None, None]
    mean = images.mean((-2, -1), keepdim=True)
    return (images - mean) * (0.25 + 0.45 * contrast) + mean + 0.5 * (brightness - 0.5)


def fold(images: Tensor, how: Tensor, width_vx: float) -> Tensor:
    """A band where the section lies doubled, one edge sharper than the other: (N, Y, X), (N, 8).

    Two layers let through the product of what each lets through; the second one is the slice's
    mirror image, and stain gathers in the crease.
    """
    across, along = _bent_line(images, how)
    half = width_vx / 2 * (0.25 + 0.75 * how[:, 4, None, None])
    half = half * (1 + 0.3 * torch.sin(along / (3 * width_vx) + 6 * how[:, 5, None, None]))
    inside = torch.sigmoid((half - across) / 0.7) * torch.sigmoid((half + across) / 2.5)
    shadow = 1 - 0.15 * torch.exp(-((across / (2.5 * half)) ** 2))
    doubled = images * images.flip(-1) * (0.35 + 0.4 * how[:, 6, None, None])
    return torch.lerp(images * shadow, doubled, inside)


def stitch(images: Tensor, how: Tensor) -> Tensor:
    """A straight seam, at times a corner of four tiles, and shading towards it: (N, Y, X), (N, 8)."""
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None] - height * how[:, 0, None, None]
    x = torch.arange(width, device=images.device) - width * how[:, 1, None, None]
    upright, corner = how[:, 2, None, None] < 0.5, how[:, 3, None, None] < 0.3
    depth = torch.where(corner, torch.minimum(y, x), torch.where(upright, x, y))
    other = torch.sigmoid(depth / 0.5)  # 1 in the other tile
    contrast = torch.exp(0.5 * (how[:, 4, None, None] * 2 - 1))
    brightness = 0.4 * (how[:, 5, None, None] - 0.5)
    shading = 0.15 * how[:, 6, None, None] * torch.exp(-depth.abs() / 50)
    mean = images.mean((-2, -1), keepdim=True)
    changed = (images - mean) * contrast + mean + brightness
    return torch.lerp(images, changed, other) - shading


def _bent_line(images: Tensor, how: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from a gently bent line through a slice, and the way along it: (N, Y, X) voxels."""
    height, width = images.shape[-2:]
    angle = 2 * math.pi * how[:, 0, None, None]
    y = torch.arange(height, device=images.device)[:, None] - height * how[:, 1, None, None]
    x = torch.arange(width, device=images.device) - width * how[:, 2, None, None]
    across, along = y * angle.cos() + x * angle.sin(), x * angle.cos() - y * angle.sin()
    size = math.hypot(height, width)
    bend = torch.sin(along * (8 / size) + 6 * how[:, 7, None, None])
    return across + 0.06 * size * how[:, 3, None, None] * bend, along

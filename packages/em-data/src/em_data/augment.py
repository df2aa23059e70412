"""Augmentation of whole batches on the device, each sample reproducible by itself.

Two steps, kept apart: `draw` makes the random numbers of each sample from its key on the CPU, the
other functions are deterministic in them. So a batch looks the same on any device and any rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from em_data.sampler import Key, random_at


def draw(
    seed: int, stream: int, keys: Sequence[Key], shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Uniform numbers in [0, 1) for every sample: (B, *shape)."""
    rows = [random_at(seed, stream, key).random(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(device)


def symmetries(uniform: Tensor) -> list[int]:
    """One of the 8 symmetries of the square for each number: (B,) or (B, 1) -> B integers."""
    return [int(k) for k in (uniform.flatten() * 8).long().tolist()]


def transform(images: Tensor, symmetry: Sequence[int]) -> Tensor:
    """Apply symmetry k = 4·flip + quarter turns to each sample: (B, …, Y, X), Y = X."""
    return torch.stack([_d4(image, k) for image, k in zip(images, symmetry, strict=True)])


def transform_back(images: Tensor, symmetry: Sequence[int]) -> Tensor:
    """Undo `transform` with the same symmetries: (B, …, Y, X).

    >>> x = torch.arange(2 * 9.0).view(2, 3, 3)
    >>> bool((transform_back(transform(x, [3, 6]), [3, 6]) == x).all())
    True
    """
    return torch.stack([_d4_back(image, k) for image, k in zip(images, symmetry, strict=True)])


def _d4(image: Tensor, k: int) -> Tensor:
    turned = torch.rot90(image, k % 4, (-2, -1))
    return turned.flip(-1) if k >= 4 else turned


def _d4_back(image: Tensor, k: int) -> Tensor:
    unflipped = image.flip(-1) if k >= 4 else image
    return torch.rot90(unflipped, -(k % 4), (-2, -1))


def photometry(slices: Tensor, uniform: Tensor, strength: float) -> Tensor:
    """Change contrast, brightness and gamma of every slice by itself.

    At strength s: contrast × exp(±s/2) about the slice's mean, brightness ± s/4 of the range,
    gamma exp(±s/2).

    Args:
        slices: (B, Z, Y, X) in [0, 1].
        uniform: (B, Z, 3) from `draw`.
        strength: 0 changes nothing; .3 suits real EM.
    """
    if strength == 0:
        return slices
    contrast, brightness, gamma = (uniform[..., None, None] * 2 - 1).unbind(
        2
    )  # each (B, Z, 1, 1) in [-1, 1)
    mean = slices.mean((-2, -1), keepdim=True)
    changed = (slices - mean) * torch.exp(strength / 2 * contrast) + mean
    changed = (changed + strength / 4 * brightness).clamp(1e-4, 1)
    return changed ** torch.exp(strength / 2 * gamma)

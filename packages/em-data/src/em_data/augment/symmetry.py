"""The eight symmetries of the square: quarter turns, with and without a flip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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

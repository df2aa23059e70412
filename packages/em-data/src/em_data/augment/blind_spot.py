"""Blind spots: some voxels are replaced, and a network that guesses them learns to remove noise.

Noise that is independent from voxel to voxel cannot be guessed from the others, tissue can
(Noise2Void, Krull 2019). So noisy images suffice, as long as the network never sees a blind voxel, nor
what its noise is correlated with, and the noise has mean 0: images must not be clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from em_data.sampler.randomness import Key, Stream, random_at


@dataclass(frozen=True, kw_only=True)
class BlindSpotConfig:
    """How many voxels are blind, and by what they are replaced."""

    cell_vx: int = 8
    """Side of the square cells that have one blind voxel each, in voxels."""
    replacement: Literal["neighbour", "median"] = "median"
    """Value of a blind voxel: a random neighbour, or the neighbours' median, against checkerboards."""
    radius_vx: int = 2
    """Distance along y and x up to which voxels are neighbours, in voxels."""
    row_vx: int = 0
    """Distance to both sides along x within which noise is correlated: all of it is replaced too."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("cell_vx", 2, 256),
            ("radius_vx", 1, 32),
            ("row_vx", 0, 64),
        ):
            value = getattr(self, name)
            if value != int(value) or not least <= value <= most:
                raise ValueError(
                    f"{name} must be a whole number from {least} to {most}, got {value}; change it"
                )
        if self.replacement not in ("neighbour", "median"):
            raise ValueError(
                f"replacement must be neighbour or median, got {self.replacement!r}; choose one"
            )


def blind_spots(
    images: Tensor, keys: Sequence[Key], config: BlindSpotConfig, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Blind voxels in the middle slices: (B, Z, Y, X) -> the images without them, and where they are.

    The mask is (B, 1, Y, X) bool, true at one voxel of every cell: the loss compares there, and only
    there, with the middle slice of `images`. What is replaced beside them along a row counts for
    nothing. A sample depends on `seed` and its key alone.

    Args:
        images: floats, not clipped; stay as they are.
        keys: of the samples.
        config: how many, and by what they are replaced.
        seed: of the run.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {str(images.dtype).removeprefix('torch.')} of shape "
            f"{tuple(images.shape)}; wanted floats (B, Z, Y, X), as Batch.image() gives"
        )
    if len(keys) != len(images):
        raise ValueError(f"wanted one key for each of {len(images)} images, got {len(keys)}")
    height, width = images.shape[2:]
    if height < 2 or width < 2:
        raise ValueError(
            f"images of {height} × {width} voxels have blind voxels without neighbours; wanted at "
            "least 2 × 2, cut larger crops"
        )
    middle = images[:, images.shape[1] // 2]  # (B, Y, X)
    mask = torch.zeros(len(images), 1, height, width, dtype=torch.bool, device=images.device)
    masked = images.clone(memory_format=torch.contiguous_format)
    for i, key in enumerate(keys):
        random = random_at(seed, Stream.BLIND, key)
        y, x = _one_of_each_cell(random, (height, width), config.cell_vx)
        mask[i, 0].view(-1)[_on(y * width + x, images)] = True
        y, x = _rows(y, x, width, config.row_vx)
        if config.replacement == "neighbour":
            source = _neighbours(random, y, x, (height, width), config)
            values = middle[i].reshape(-1)[_on(source, images)]
        else:
            values = _medians(middle[i], _on(y, images), _on(x, images), config)
        target = masked[i, images.shape[1] // 2].view(-1)
        target[_on(y * width + x, images)] = values
    return masked, mask


Places = NDArray[np.int64]  # (N,) coordinates along an axis, or of voxels of a slice


def _on(places: Places, images: Tensor) -> Tensor:
    return torch.from_numpy(places).to(images.device)


def _one_of_each_cell(
    random: np.random.Generator, size: tuple[int, int], cell: int
) -> tuple[Places, Places]:
    """One voxel of each cell, none where it falls beyond the edge: so any voxel is as likely."""
    down, across = (-(-n // cell) for n in size)
    inside = random.integers(cell, size=(2, down, across))
    y = (inside[0] + cell * np.arange(down)[:, None]).ravel()
    x = (inside[1] + cell * np.arange(across)).ravel()
    there = (y < size[0]) & (x < size[1])
    return y[there], x[there]


def _rows(y: Places, x: Places, width: int, reach: int) -> tuple[Places, Places]:
    """The voxels and those up to `reach` beside them along x, each once."""
    if reach == 0:
        return y, x
    beside = x[:, None] + np.arange(-reach, reach + 1)  # (N, K)
    there = (beside >= 0) & (beside < width)
    voxels = np.unique((y[:, None] * width + beside)[there])
    return voxels // width, voxels % width


def _neighbours(
    random: np.random.Generator,
    y: Places,
    x: Places,
    size: tuple[int, int],
    config: BlindSpotConfig,
) -> Places:
    """A neighbour of each voxel that lies in the slice, all as likely: which voxel of the slice.

    Never the voxel itself, and where rows are correlated nothing of its row.
    """
    radius, width = config.radius_vx, size[1]
    top, left = np.maximum(y - radius, 0), np.maximum(x - radius, 0)
    tall = np.minimum(y + radius, size[0] - 1) - top + 1
    wide = np.minimum(x + radius, width - 1) - left + 1
    skipped = wide if config.row_vx else np.ones_like(wide)
    first = (y - top) * wide + (0 if config.row_vx else x - left)  # of what is left out
    chosen = (random.random(len(y)) * (tall * wide - skipped)).astype(np.int64)
    chosen += np.where(chosen >= first, skipped, 0)
    return (top + chosen // wide) * width + left + chosen % wide


def _medians(image: Tensor, y: Tensor, x: Tensor, config: BlindSpotConfig) -> Tensor:
    """The median of the neighbours of each voxel, of two in the middle the lower: (Y, X), (N,) -> (N,).

    Without the voxel itself, and where rows are correlated without its row.
    """
    radius = config.radius_vx
    padded = F.pad(image, [radius] * 4, value=float("nan"))
    around = torch.arange(2 * radius + 1, device=image.device)
    dy, dx = (one.flatten() for one in torch.meshgrid(around, around, indexing="ij"))
    near = dy != radius if config.row_vx else (dy != radius) | (dx != radius)
    offsets = (dy * padded.shape[1] + dx)[near]
    start = y * padded.shape[1] + x
    values = padded.view(-1).index_select(0, (start[:, None] + offsets).flatten())
    return values.view(len(y), -1).nanmedian(1).values

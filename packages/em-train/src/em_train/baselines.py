"""What learned classes must beat: k-means on intensity alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth(slices: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every slice: (Z, Y, X) float -> same, borders reflected."""
    if sigma == 0:
        return slices
    radius = round(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=slices.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = F.pad(slices[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def kmeans(points: Tensor, k: int, *, seed: int = 0, rounds: int = 100) -> Tensor:
    """Centres of k clusters by Lloyd's rounds from a k-means++ start: (N, D) -> (k, D)."""
    points = points.float()
    centres = _spread_centres(points, k, torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        nearest = assign(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=k)[:, None]
        # A cluster that lost all of its points stays where it was.
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread_centres(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k points, each drawn with probability ∝ squared distance to those before it.

    Arthur & Vassilvitskii 2007, k-means++: The Advantages of Careful Seeding.
    """
    chosen = [points[int(torch.randint(len(points), (1,), generator=generator))]]
    distance = (points - chosen[0]).square().sum(1)
    while len(chosen) < k:
        if not distance.any():
            raise ValueError(f"{len(chosen)} distinct points cannot make {k} clusters; lower k")
        # A place on the cumulative sum instead of multinomial, which takes at most 2²⁴ points.
        place = torch.rand(1, generator=generator, dtype=torch.float64) * distance.double().sum()
        index = int(
            torch.searchsorted(distance.double().cumsum(0), place).clamp(max=len(points) - 1)
        )
        chosen.append(points[index])
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(1))
    return torch.stack(chosen)


def assign(points: Tensor, centres: Tensor, chunk: int = 1 << 16) -> Tensor:
    """Index of the nearest centre of every point: (N, D), (k, D) -> (N,)."""
    return torch.cat([torch.cdist(part.float(), centres).argmin(1) for part in points.split(chunk)])


def grey_centres(slices: Tensor, k: int, *, sigma: float = 2.0, seed: int = 0) -> Tensor:
    """Centres of k clusters of the smoothed intensity of slices (Z, Y, X): (k, 1)."""
    points = smooth(slices.float(), sigma).flatten()[:, None]
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(points), generator=generator)[:50_000]
    return kmeans(points[sample], k, seed=seed)


def grey_codes(slices: Tensor, centres: Tensor, *, sigma: float = 2.0) -> Tensor:
    """The nearest centre of the smoothed intensity of every pixel: (Z, Y, X) -> (Z, Y, X)."""
    grey = smooth(slices.float(), sigma)
    return assign(grey.flatten()[:, None], centres).view(grey.shape)

"""What learned classes must beat: clusters of intensity and of hand-made features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
REACH = 4  # of a blur, in its σ
REGULAR = 1e-6  # added to every variance of a mixture, so that none is zero


def smooth(slices: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every slice: (Z, Y, X) float -> same, borders reflected."""
    if sigma == 0:
        return slices
    radius = round(REACH * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=slices.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = F.pad(slices[:, None], (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def kmeans(
    points: Tensor, k: int, *, seed: int = 0, rounds: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """Centres of k clusters by Lloyd's rounds from a k-means++ start: (N, D) -> (k, D).

    Stops when the centres move by less than `tolerance` of the points' variance in a round.
    """
    points = points.float()
    still = tolerance * float(points.var(0, correction=0).mean())
    centres = _spread_centres(points, k, torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        nearest = assign(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=k)[:, None]
        # A cluster that lost all of its points stays where it was.
        moved = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        change = float((moved - centres).square().sum())
        centres = moved
        if change <= still:
            break
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


# Mixtures of Gaussians -----------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of k Gaussians with covariances of their own, in float64."""

    log_weights: Tensor  # (k,)
    means: Tensor  # (k, D)
    precisions: Tensor  # (k, D, D), inverse covariances

    def log_densities(self, points: Tensor) -> Tensor:
        """log(weight · density) of every point under every Gaussian: (N, D) -> (N, k)."""
        return self._of_products(points, _products(points))

    def _of_products(self, points: Tensor, products: Tensor) -> Tensor:
        """The quadratic form as one matrix product for all Gaussians."""
        rows, columns = torch.triu_indices(*self.precisions.shape[1:])
        twice = torch.where(rows == columns, 1.0, 2.0).to(points)
        linear = torch.einsum("kij,kj->ki", self.precisions, self.means)  # (k, D)
        form = products @ (self.precisions[:, rows, columns] * twice).T - 2 * points @ linear.T
        form += (linear * self.means).sum(1)
        volume = torch.linalg.slogdet(self.precisions).logabsdet / 2
        return self.log_weights + volume - (form + points.shape[1] * LOG_2PI) / 2

    def assign(self, points: Tensor, chunk: int = 1 << 14) -> Tensor:
        """Index of the likeliest Gaussian of every point: (N, D) -> (N,)."""
        parts = points.split(chunk)
        return torch.cat([self.log_densities(part.double()).argmax(1) for part in parts])


def _products(points: Tensor) -> Tensor:
    """x_i · x_j for i ≤ j of every point: (N, D) -> (N, D (D + 1) / 2)."""
    rows, columns = torch.triu_indices(points.shape[1], points.shape[1])
    return points[:, rows] * points[:, columns]


def fit_mixture(
    points: Tensor, k: int, *, seed: int = 0, rounds: int = 100, tolerance: float = 1e-3
) -> GaussianMixture:
    """A mixture of k Gaussians by expectation maximisation from k-means: (N, D), standardised.

    Stops when the mean log-likelihood grows by less than `tolerance` in a round.
    """
    nearest = assign(points, kmeans(points, k, seed=seed))
    points = points.double()
    products = _products(points)
    shares = torch.zeros(len(points), k, dtype=points.dtype)
    shares[torch.arange(len(points)), nearest] = 1
    before = -torch.inf
    for _ in range(rounds):
        mixture = _maximise(points, products, shares)
        densities = mixture._of_products(points, products)  # (N, k)
        total = densities.logsumexp(1, keepdim=True)
        shares = (densities - total).exp()
        likelihood = float(total.mean())
        if abs(likelihood - before) < tolerance:
            break
        before = likelihood
    return mixture


def _maximise(points: Tensor, products: Tensor, shares: Tensor) -> GaussianMixture:
    """The likeliest Gaussians for points (N, D) that belong to them in shares (N, k)."""
    dimensions = points.shape[1]
    counts = shares.sum(0) + 10 * torch.finfo(points.dtype).eps
    means = shares.T @ points / counts[:, None]
    rows, columns = torch.triu_indices(dimensions, dimensions)
    covariances = points.new_zeros(len(counts), dimensions, dimensions)
    upper = shares.T @ products / counts[:, None] - means[:, rows] * means[:, columns]
    covariances[:, rows, columns] = upper
    covariances[:, columns, rows] = upper
    covariances += REGULAR * torch.eye(dimensions, dtype=points.dtype)
    return GaussianMixture(
        (counts / counts.sum()).log(),
        means,
        torch.cholesky_inverse(torch.linalg.cholesky(covariances)),
    )

"""SIGReg: embeddings shall be spread like a Gaussian, as seen from random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from em_losses.entropy import Reduce, identity


def sigreg(
    samples: Tensor,
    directions: Tensor,
    *,
    unbiased: bool = True,
    points: int = 17,
    limit: float = 5.0,
    reduce: Reduce = identity,
) -> Tensor:
    """Distance of the samples' distribution from N(0, I), mean over directions: ().

    For the projections x = samples · direction, φ_N(t) = mean of exp(itx), and φ(t) = exp(−t²/2) of
    the standard normal: ∫ |φ_N − φ|² exp(−t²/2) dt, the statistic of Epps & Pulley 1983, A test for
    normality based on the empirical characteristic function, by the trapezoid rule. As a loss:
    Balestriero & LeCun 2025, LeJEPA, there N times the integral.

    Args:
        samples: (N, D), N ≥ 2, over which the distribution is taken: pixels, or means of images.
        directions: (M, D) of unit length, the same on all ranks: `draw_directions`.
        unbiased: what N finite samples of the normal itself would give is taken away, so that value
            and pull do not depend on the size of the batch, and neither does the right weight.
            False: the statistic N · ∫ as published, whose pull grows with N.
        points: of the trapezoid rule from −limit to limit; odd.
        reduce: adds up over ranks, so that the samples are those of the global batch.

    Range [0, ∞), near 0 (of either sign if unbiased) for Gaussian samples.

    >>> from em_losses.draws import draw_directions, generator
    >>> normal = torch.randn(4096, 8, generator=generator((0,)))
    >>> directions = draw_directions(64, 8, key=(0,))
    >>> bool(abs(sigreg(normal, directions)) < 1e-3 < sigreg(2 * normal, directions))
    True
    """
    if samples.dim() != 2 or len(samples) < 2 or samples.shape[1:] != directions.shape[1:]:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}, directions {tuple(directions.shape)}; "
            "wanted (N, D) with N ≥ 2, and (M, D)"
        )
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is {points}; wanted an odd number of at least 3")
    kind = torch.float64 if samples.dtype == torch.float64 else torch.float32
    # The integrand is even: only t ≥ 0 is computed, and counts twice.
    t = torch.linspace(0, limit, points // 2 + 1, dtype=kind, device=samples.device)  # (T,)
    normal = torch.exp(-t.square() / 2)  # φ(t), and the weight as well
    weight = 2 * limit / (points // 2) * normal
    weight = torch.cat([weight[:1] / 2, weight[1:-1], weight[-1:] / 2])
    with torch.autocast(samples.device.type, enabled=False):
        projected = samples.to(kind) @ directions.to(samples.device, kind).T  # (N, M)
    angles = projected[..., None] * t  # (N, M, T)
    sums = reduce(torch.stack([angles.cos().sum(0), angles.sin().sum(0)]))  # (2, M, T)
    count = reduce(sums.new_tensor(float(len(samples))))
    real, imaginary = sums / count
    if unbiased:
        # A sum over pairs i ≠ j: what each sample has in common with itself is left out.
        square = (count * (real.square() + imaginary.square()) - 1) / (count - 1)
        distance = square - 2 * real * normal + normal.square()
    else:
        distance = count * ((real - normal).square() + imaginary.square())
    return (distance * weight).sum(1).mean()

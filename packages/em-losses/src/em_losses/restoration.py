"""How far a restored image is from the truth: by pixels, and by structure.

    charbonnier + weight · (1 − ms_ssim)

By pixels the mean of all images that are possible wins, which is blurred; structure is asked for beside
it (Zhao et al. 2017, Loss Functions for Image Restoration with Neural Networks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from em_losses.entropy import Reduce, identity, wide

WINDOW, SIGMA = 11, 1.5  # px, of the Gaussian that local means are taken with
K1, K2 = 0.01, 0.03  # of the data range: what keeps a quotient of nearly nothing near 1
# Of each scale from fine to coarse, as observers weighed them: Wang et al. 2003, table 1.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
FLOOR = 1e-6  # a similarity below counts as this: the slope of a root is infinite at 0


def charbonnier(
    restored: Tensor,
    truth: Tensor,
    where: Tensor | None = None,
    *,
    epsilon: float = 1e-3,
    reduce: Reduce = identity,
) -> Tensor:
    """Mean over pixels of √(d² + ε²) − ε, d being restored − truth: ().

    Nearly |d| for differences beyond ε, and smooth within (Charbonnier et al. 1994, Two deterministic
    half-quadratic regularization algorithms for computed imaging).

    Args:
        restored, truth: (B, C, …) of one shape.
        where: bool of the same shape, or one that broadcasts to it, as (B, 1, …): True where a pixel
            counts. Others have no gradient, whatever they hold; without any, the loss is 0.
        epsilon: ε > 0, in the units of the images.
        reduce: adds up over ranks.

    Range [0, ∞), never above the mean of |d|.

    >>> round(float(charbonnier(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))), 3)
    0.999
    """
    _check_pair(restored, truth)
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon:g}; wanted a number > 0")
    difference = wide(restored) - wide(truth)
    pixels = difference.new_tensor(float(difference.numel()))
    if where is not None:
        keep = _spread(where, restored)
        # Before the root: a NaN that is left out only afterwards still has a gradient.
        difference = torch.where(keep, difference, 0)
        pixels = keep.sum().to(difference.dtype)
    square = difference.square()
    # The same as √(d² + ε²) − ε, without the difference of nearly equal numbers.
    total = (square / ((square + epsilon**2).sqrt() + epsilon)).sum()
    return reduce(total) / reduce(pixels).clamp_min(1)


def ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of two images, mean over channels and pixels: (B,).

    (2 μ_a μ_b + c₁) (2 σ_ab + c₂) / ((μ_a² + μ_b² + c₁) (σ_a² + σ_b² + c₂)) with local means, variances
    and covariance under a Gaussian of σ = 1.5 px in windows of 11 × 11 that lie within the image, and
    c = (.01 L)², (.03 L)² (Wang et al. 2004, Image Quality Assessment).

    Args:
        a, b: (B, C, Y, X) of one shape, with sides of at least 11 px.
        data_range: L, the largest value less the smallest one that images can have.

    Range [−1, 1], 1 for equal images; symmetric in a and b.

    >>> image = torch.rand(2, 1, 32, 32)
    >>> ssim(image, image).tolist()
    [1.0, 1.0]
    """
    _check_images(a, b, data_range)
    return _similarities(wide(a), wide(b), data_range)[0]


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0, scales: int = len(SCALES)) -> Tensor:
    """Structural similarity at several scales: (B,).

    Π_j cs_j^w_j · ssim_J^w_J: at each scale but the coarsest the second factor of `ssim` alone, contrast
    and structure; images are halved by means of 2 × 2 pixels from scale to scale (Wang et al. 2003,
    Multi-scale structural similarity for image quality assessment).

    Args:
        a, b, data_range: as of `ssim`.
        scales: 1 to 5, at most so many. Images of less than 11 · 2^(scales − 1) px, 176 for five, have
            fewer, and the weights of the rest are scaled to add up to 1.

    Range (0, 1], 1 for equal images; a negative factor counts as 1e-6.

    >>> image = torch.rand(2, 1, 48, 48)
    >>> ms_ssim(image, image).tolist()
    [1.0, 1.0]
    """
    _check_images(a, b, data_range)
    if not 1 <= scales <= len(SCALES):
        raise ValueError(f"scales is {scales}; wanted 1 to {len(SCALES)}")
    a, b = wide(a), wide(b)
    fitting = (min(a.shape[-2:]) // WINDOW).bit_length()
    weights = SCALES[: min(scales, fitting)]
    total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for number, weight in enumerate(weights):
        if number:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        whole, contrast = _similarities(a, b, data_range)
        factor = whole if number == len(weights) - 1 else contrast
        total = total + weight / sum(weights) * factor.clamp_min(FLOOR).log()
    return total.exp()


def _similarities(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Means over an image of `ssim` and of its second factor: (B,) each."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    with torch.autocast(a.device.type, enabled=False):
        mean_a, mean_b, square_a, square_b, product = _blurred(
            torch.stack([a, b, a * a, b * b, a * b])
        )
    variances = (square_a - mean_a.square()) + (square_b - mean_b.square())
    contrast = (2 * (product - mean_a * mean_b) + c2) / (variances + c2)
    light = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    return (light * contrast).mean((1, 2, 3)), contrast.mean((1, 2, 3))


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means of the windows that lie within: (…, Y, X) -> (…, Y − 10, X − 10)."""
    places = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = (-0.5 * (places / SIGMA).square()).exp()
    weights = weights / weights.sum()
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return flat.view(*maps.shape[:-2], *flat.shape[-2:])


def _spread(where: Tensor, like: Tensor) -> Tensor:
    if where.dtype != torch.bool:
        raise TypeError(f"where is {where.dtype}; wanted bool")
    try:
        return where.expand_as(like)
    except RuntimeError:
        raise ValueError(
            f"where has shape {tuple(where.shape)}; wanted {tuple(like.shape)}, or 1 instead of some "
            "of its sides"
        ) from None


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"images have shapes {tuple(a.shape)} and {tuple(b.shape)}; wanted the same"
        )


def _check_images(a: Tensor, b: Tensor, data_range: float) -> None:
    _check_pair(a, b)
    if a.dim() != 4 or min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"images have shape {tuple(a.shape)}; wanted (B, C, Y, X) with sides of at least {WINDOW} px"
        )
    if not data_range > 0:
        raise ValueError(f"data_range is {data_range:g}; wanted a number > 0")

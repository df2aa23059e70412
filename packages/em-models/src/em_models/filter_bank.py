"""The hand-made features of every pixel: what a learned embedding must beat, or may learn from.

At each scale σ: Gaussian, gradient magnitude, both eigenvalues of the Hessian, and local standard
deviation. Convolutions are valid, as everywhere here: a feature depends on its patch alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PER_SCALE = 5  # features of each scale
TRUNCATE = 4  # kernels end at this many σ, as in scipy.ndimage


@dataclass(frozen=True, kw_only=True)
class FilterBankConfig:
    """Scales of a `FilterBank`."""

    sigmas: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Standard deviations of the Gaussians, in pixels; each gives five features."""

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 < sigma < float("inf") for sigma in self.sigmas):
            raise ValueError(f"sigmas are {self.sigmas}; wanted at least one number > 0")

    @property
    def features(self) -> int:
        """Number of features of a pixel."""
        return PER_SCALE * len(self.sigmas)

    @property
    def margin(self) -> int:
        """Pixels at each border of the input that get no features."""
        return max(map(radius, self.sigmas))

    @property
    def receptive_field(self) -> int:
        """Side of the patch that the features depend on, in pixels."""
        return 2 * self.margin + 1


class FilterBank(nn.Module):
    """Image (B, 1, Y, X) -> features (B, 5 per scale, Y − 2·margin, X − 2·margin).

    In the order Gaussian, gradient magnitude, larger and smaller eigenvalue of the Hessian, standard
    deviation, for the first scale, then the next. `fit` takes mean and standard deviation of every
    feature from images; both are saved with the weights. Before it, features come as computed.

    >>> bank = FilterBank(FilterBankConfig(sigmas=(1.0, 2.0)))
    >>> bank(torch.rand(1, 1, 33, 40)).shape, bank.config.margin
    (torch.Size([1, 10, 17, 24]), 8)
    """

    Config = FilterBankConfig
    mean: Tensor  # (F,)
    std: Tensor  # (F,)

    def __init__(self, config: FilterBankConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("std", torch.ones(config.features))

    def fit(self, images: Tensor) -> FilterBank:
        """Standardise by the features of these images (B, 1, Y, X) from now on."""
        with torch.no_grad():
            found = self.compute(images).double()  # (B, F, Y', X')
            std, mean = torch.std_mean(found, dim=(0, 2, 3), correction=0)
            self.mean.copy_(mean)
            # A feature that never changes says nothing; dividing by its rounding errors would.
            self.std.copy_(torch.where(std > 1e-6 * mean.abs(), std, 1))
        return self

    def forward(self, image: Tensor, step: int = 1) -> Tensor:
        """Standardised features; those at (i, j) belong to pixel (margin + i·step, margin + j·step)."""
        shape = (1, -1, 1, 1)
        return (self.compute(image, step) - self.mean.view(shape)) / self.std.view(shape)

    def compute(self, image: Tensor, step: int = 1) -> Tensor:
        """Features as they are, in units of the image and of its derivatives per pixel."""
        if image.dim() != 4 or image.shape[1] != 1:
            raise ValueError(f"image has shape {tuple(image.shape)}; wanted (B, 1, Y, X)")
        if min(image.shape[-2:]) < self.config.receptive_field:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} px is smaller than the receptive field of "
                f"{self.config.receptive_field} px; give a larger crop, or smaller sigmas"
            )
        image = image if image.dtype == torch.float64 else image.float()
        found = []
        # Differences of neighbours do not survive half precision.
        with torch.autocast(image.device.type, enabled=False):
            for sigma in self.config.sigmas:
                cut = self.config.margin - radius(sigma)
                rows, columns = (slice(cut, n - cut) for n in image.shape[-2:])
                found.append(_scale(image[..., rows, columns], sigma, step))
        return torch.cat(found, 1)


def radius(sigma: float) -> int:
    """Pixels on each side of the centre of a kernel."""
    return int(TRUNCATE * sigma + 0.5)


def _kernels(sigma: float, like: Tensor) -> Tensor:
    """Gaussian and its first two derivatives, as correlation kernels: (3, 2·radius + 1)."""
    x = torch.arange(-radius(sigma), radius(sigma) + 1, dtype=torch.float64)
    gauss = torch.exp(-0.5 * (x / sigma) ** 2)
    gauss /= gauss.sum()
    first = x / sigma**2 * gauss  # correlation: the derivative's sign is turned
    second = (x**2 / sigma**4 - 1 / sigma**2) * gauss
    return torch.stack([gauss, first, second]).to(like)


def _scale(image: Tensor, sigma: float, step: int) -> Tensor:
    """The features of one scale: (B, 1, Y, X) -> (B, 5, Y', X')."""
    kernels = _kernels(sigma, image)
    down = kernels[:, None, :, None]  # (3, 1, n, 1)
    across = kernels[:, None, None, :]  # (3, 1, 1, n)
    rows = F.conv2d(image, down, stride=(step, 1))  # (B, 3, Y', X): orders 0, 1, 2 along y
    # Squares lose digits where the mean is large. A variance does not change with an offset.
    offset = image.mean()
    squares = F.conv2d((image - offset).square(), down[:1], stride=(step, 1))
    along = (1, step)
    smooth, dx, dxx = F.conv2d(rows[:, :1], across, stride=along).split(1, 1)
    dy, dxy = F.conv2d(rows[:, 1:2], across[:2], stride=along).split(1, 1)
    dyy = F.conv2d(rows[:, 2:], across[:1], stride=along)
    square = F.conv2d(squares, across[:1], stride=along)
    half = (dyy + dxx) / 2
    root = torch.hypot((dyy - dxx) / 2, dxy)
    deviation = (square - (smooth - offset).square()).clamp(min=0).sqrt()
    return torch.cat([smooth, torch.hypot(dx, dy), half + root, half - root, deviation], 1)

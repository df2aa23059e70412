"""A discriminator of patches: image -> a score for every patch, how real it looks.

    image, and what it was made from -> 16 ch at 1/2 -> 32 ch at 1/4 -> 64 ch -> scores

The PatchGAN of Isola et al. 2017 (Pix2Pix), with two changes. There is no batch norm, whose statistics
would tell a batch of restored images from one of true images; spectral norm (Miyato et al. 2018) keeps
the slope bounded instead. And there is no padding, so that a score is the same function of true pixels
at every place: a border of zeros looks alike in true and restored images, and there a score would say
little of the image, and much of where the crop ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

KERNEL = 4  # px, of every convolution, as published
WIDEST = 8  # times the channels of the first layer, at most
SLOPE = 0.2  # of LeakyReLU


@dataclass(frozen=True, kw_only=True)
class PatchDiscriminatorConfig:
    """Shape of a `PatchDiscriminator`."""

    inputs: int = 2
    """Channels of the input: 1 for the image, and the slices of the condition."""
    channels: int = 16
    """Channels of the first layer; every further layer has twice as many, up to 8 times."""
    layers: int = 2
    """Convolutions with stride 2; two more without a stride follow."""
    spectral: bool = True
    """Divide the weights of each layer by their largest singular value."""

    def __post_init__(self) -> None:
        for name in ("inputs", "channels", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels behind each convolution but the last."""
        return tuple(self.channels * min(2**i, WIDEST) for i in range(self.layers + 1))

    @property
    def pitch(self) -> int:
        """Pixels between neighbouring scores."""
        return 2**self.layers

    @property
    def receptive_field(self) -> int:
        """Side of the patch that a score depends on, in pixels.

        >>> PatchDiscriminatorConfig().receptive_field, PUBLISHED.receptive_field
        (34, 70)
        """
        return 1 + (KERNEL - 1) * (sum(2**i for i in range(self.layers)) + 2 * self.pitch)


PUBLISHED = PatchDiscriminatorConfig(channels=64, layers=3)  # the size of Pix2Pix


class PatchDiscriminator(nn.Module):
    """Image (B, 1, Y, X), condition (B, S, Y, X) or none -> scores (B, 1, y, x), of any size.

    y = (Y − field) // pitch + 1: the patch of the score at (i, j) begins at pixel (pitch·i, pitch·j).

    >>> PatchDiscriminator(PatchDiscriminatorConfig())(*torch.zeros(2, 3, 1, 64, 64)).shape
    torch.Size([3, 1, 8, 8])
    """

    Config = PatchDiscriminatorConfig

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        inputs, layers = config.inputs, []
        for number, outputs in enumerate((*config.widths, 1)):
            layers.append(nn.Conv2d(inputs, outputs, KERNEL, 2 if number < config.layers else 1))
            inputs = outputs
        self.layers = nn.ModuleList(spectral_norm(c) if config.spectral else c for c in layers)
        self.activate = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Score of every patch."""
        x = image if condition is None else torch.cat([image, condition], 1)
        if x.shape[1] != self.config.inputs:
            slices = 0 if condition is None else condition.shape[1]
            raise ValueError(
                f"image and condition have {image.shape[1]} + {slices} channels; this discriminator "
                f"takes {self.config.inputs} together"
            )
        if min(x.shape[-2:]) < self.config.receptive_field:
            raise ValueError(
                f"image of {' × '.join(map(str, x.shape[-2:]))} px is smaller than the patches of "
                f"{self.config.receptive_field} px; take larger crops, or fewer layers"
            )
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activate(layer(x))
        scores: Tensor = last(x)
        return scores

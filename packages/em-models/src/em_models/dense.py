"""A dense encoder that cannot know where it is: valid convolutions, no padding.

Each code is a function of one patch of pixels. Zero padding would tell every pixel its distance
from the border of the crop, and a loss that can be lowered by coding *where* instead of *what* will
be. For the same reason the only norm over pixels is batch norm, which is a constant at inference.

Two ways to run the same weights: with strides, one code every `pitch` pixels (training), or with the
strides turned into dilation, one code for every pixel (prediction). Where both have a code, it is
the same code.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DenseEncoderConfig:
    """Layers of a `DenseEncoder`; one entry per convolution."""

    classes: int = 50
    """K, the number of unsupervised classes."""
    embedding: int = 64
    """Channels of the embedding that the classes are read from."""
    channels: tuple[int, ...] = (16, 32, 32, 64, 64, 64)
    """Output channels of each convolution."""
    kernels: tuple[int, ...] = (5, 3, 3, 3, 3, 3)
    """Kernel size of each convolution, odd."""
    strides: tuple[int, ...] = (2, 1, 1, 2, 1, 1)
    """Stride of each convolution; their product is the pitch of the codes, in pixels."""
    dilations: tuple[int, ...] = (1, 1, 1, 1, 1, 2)
    """Dilation of each convolution."""
    sharpness: float = 8.0
    """Factor on the cosine between embedding and prototypes, the inverse temperature of the codes."""

    def __post_init__(self) -> None:
        lengths = {len(self.channels), len(self.kernels), len(self.strides), len(self.dilations)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(
                "channels, kernels, strides and dilations name one convolution each; they have "
                f"{len(self.channels)}, {len(self.kernels)}, {len(self.strides)} and "
                f"{len(self.dilations)} entries, wanted the same number, at least 1"
            )
        for name in ("channels", "strides", "dilations"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} are {getattr(self, name)}; wanted numbers of at least 1")
        if self.embedding < 1:
            raise ValueError(f"embedding is {self.embedding}; wanted at least 1 channel")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness is {self.sharpness}; wanted a number > 0")
        if any(k % 2 == 0 or k < 1 for k in self.kernels):
            raise ValueError(f"kernels are {self.kernels}; wanted odd sizes")
        if self.classes < 2:
            raise ValueError(f"classes is {self.classes}; wanted at least 2")

    @property
    def pitches(self) -> tuple[int, ...]:
        """Pixels between neighbouring outputs of each convolution."""
        return tuple(itertools.accumulate(self.strides, int.__mul__))

    @property
    def margins(self) -> tuple[int, ...]:
        """Pixels that each border has lost after each convolution.

        Each grows by a multiple of the pitch before it, so every layer has an output in the centre
        of every later one.
        """
        before = (1, *self.pitches[:-1])
        lost = (
            pitch * dilation * (kernel // 2)
            for pitch, dilation, kernel in zip(before, self.dilations, self.kernels, strict=True)
        )
        return tuple(itertools.accumulate(lost))

    @property
    def pitch(self) -> int:
        """Pixels between neighbouring codes when run with strides."""
        return self.pitches[-1]

    @property
    def margin(self) -> int:
        """Pixels at each border of the input that get no code."""
        return self.margins[-1]

    @property
    def receptive_field(self) -> int:
        """Side of the patch that a code depends on, in pixels."""
        return 2 * self.margin + 1

    def crop_size(self, codes: int) -> int:
        """Pixels that give `codes` codes along one axis.

        >>> DenseEncoderConfig().crop_size(19)
        113
        """
        return self.receptive_field + (codes - 1) * self.pitch


class DenseCodes(NamedTuple):
    """What an encoder says about every place."""

    logits: Tensor  # (B, K, Y', X')
    embedding: Tensor  # (B, E, Y', X'), unit length


class DenseEncoder(nn.Module):
    """Image (B, 1, Y, X) -> logits over K classes and an embedding for every place.

    >>> encoder = DenseEncoder(DenseEncoderConfig())
    >>> encoder.config.receptive_field, encoder.config.pitch
    (41, 4)
    >>> encoder(torch.zeros(1, 1, 113, 113)).logits.shape
    torch.Size([1, 50, 19, 19])
    """

    Config = DenseEncoderConfig

    def __init__(self, config: DenseEncoderConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (1, *config.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, k, bias=False)
            for i, o, k in zip(inputs, config.channels, config.kernels, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in config.channels)
        # The last layer at each pitch is seen by the embedding: fine and coarse context together.
        self.taps = [
            i
            for i, pitch in enumerate(config.pitches)
            if i + 1 == len(config.pitches) or config.pitches[i + 1] != pitch
        ]
        tapped = sum(config.channels[i] for i in self.taps)
        self.embed = nn.Conv2d(tapped, config.embedding, 1, bias=False)
        # No affine parameters: a free scale would let one direction take over all prototypes.
        self.embed_norm = nn.BatchNorm2d(config.embedding, affine=False)
        self.prototypes = nn.Parameter(torch.randn(config.classes, config.embedding))

    def forward(self, image: Tensor, dense: bool = False) -> DenseCodes:
        """Codes of (B, 1, Y, X), one every `pitch` pixels, or one per pixel with `dense`.

        The code at (i, j) belongs to input pixel (margin + i·step, margin + j·step).
        """
        config = self.config
        if min(image.shape[-2:]) < config.receptive_field:
            raise ValueError(
                f"image of {tuple(image.shape[-2:])} px is smaller than the receptive field of "
                f"{config.receptive_field} px; give a larger crop"
            )
        out = 1 if dense else config.pitch
        size = [(n - config.receptive_field) // out + 1 for n in image.shape[-2:]]  # (Y', X')
        x, tapped, pitch = image, [], 1
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            kernel: Any = convolution.weight
            # Dense: strides not taken so far spread the kernel, so that it meets the same pixels.
            stride, spread = (1, pitch) if dense else (config.strides[i], 1)
            dilation = config.dilations[i] * spread
            x = F.relu(norm(F.conv2d(x, kernel, stride=stride, dilation=dilation)))
            pitch *= config.strides[i]
            if i in self.taps:
                step = 1 if dense else pitch  # pixels between neighbours of x
                tapped.append(
                    _at_output(x, (config.margin - config.margins[i]) // step, out // step, size)
                )
        embedding = F.normalize(self.embed_norm(self.embed(torch.cat(tapped, 1))), dim=1)
        prototypes = F.normalize(self.prototypes, dim=1)[..., None, None]  # (K, E, 1, 1)
        return DenseCodes(config.sharpness * F.conv2d(embedding, prototypes), embedding)


def _at_output(features: Tensor, first: int, step: int, size: list[int]) -> Tensor:
    """The features at the places of the output: (B, C, Y, X) -> (B, C, Y', X')."""
    rows, columns = (slice(first, first + (n - 1) * step + 1, step) for n in size)
    return features[:, :, rows, columns]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)

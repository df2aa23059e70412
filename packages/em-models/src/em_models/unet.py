"""A light residual U-Net for slices: image -> logits of every class at every pixel.

    image -> 32 ch -> 64 ch at 1/2 -> 128 ch at 1/4 -> 256 ch at 1/8, bottleneck -> up again, with skips

Residual blocks normalise and activate before they convolve (He et al. 2016, Identity Mappings in Deep
Residual Networks); the bottleneck is a block of ConvNeXt (Liu et al. 2022) with batch norm. The decoder
has half the width of the encoder: the skips bring the detail, and at full resolution channels cost
most.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from em_models.dense import DenseEncoder, DenseEncoderConfig
from em_models.norm import BatchNorm

Activation = Literal["leaky_relu", "gelu"]
Norm = Literal["batch", "group", "none"]
GROUPS = 8  # of channels that a group norm normalises together, at most
SQUEEZE = 8  # channels per hidden unit of squeeze-and-excitation


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a `UNet`."""

    classes: int = 1
    """Number of classes C, each with a logit of its own."""
    slices: int = 1
    """Slices of the input, as channels, the middle one being segmented; odd."""
    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the encoder at full resolution, at half of it, and so on; the last are the
    bottleneck's. Their number is the depth."""
    decoder: tuple[int, ...] = ()
    """Channels of the decoder at full resolution, at half of it, and so on; without them, half of
    the encoder's."""
    down: Literal["pool", "stride"] = "pool"
    """Halving of the resolution: pool (maximum of 2 × 2 pixels) or stride (a 3 × 3 convolution
    with stride 2)."""
    up: Literal["transpose", "bilinear"] = "transpose"
    """Doubling of the resolution: transpose (a transposed 2 × 2 convolution) or bilinear
    (interpolation and a 3 × 3 convolution)."""
    activation: Activation = "leaky_relu"
    """Activation: leaky_relu or gelu; the bottleneck always has GELU."""
    norm: Norm = "batch"
    """Normalisation: batch; group, which takes statistics of each tile, so that the result depends
    on the tiling; or none."""
    dropout: float = 0.0
    """Share of the bottleneck's channels that is dropped while training."""
    squeeze: bool = False
    """Squeeze-and-excitation in every block; its means are taken over the tile, as those of
    norm=group."""
    deep_supervision: bool = False
    """Logits at the coarser levels of the decoder too, in training."""
    guide: DenseEncoderConfig | None = None
    """A dense-ssl encoder whose embedding joins the U-Net at the level of its pitch."""
    guide_scale: int = 1
    """Pixels of the image, along y and x, that are averaged to one of the guide's."""

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes is {self.classes}; wanted at least 1")
        if self.slices < 1 or self.slices % 2 == 0:
            raise ValueError(
                f"slices is {self.slices}; wanted an odd number, the target in the middle"
            )
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(
                f"channels are {self.channels}; wanted at least two levels of 1 or more, as "
                "(32, 64, 128, 256)"
            )
        if self.decoder and (len(self.decoder) != self.depth or min(self.decoder) < 1):
            raise ValueError(
                f"decoder has {len(self.decoder)} levels {self.decoder}; {len(self.channels)} levels "
                f"of the encoder need {self.depth}, each of 1 channel or more"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout:g}; wanted 0 ≤ dropout < 1")
        if self.guide is not None and self.guide.padding != "none":
            raise ValueError(
                f"the guide has padding={self.guide.padding!r}; take an encoder without padding"
            )
        cells = [2**level for level in range(self.depth + 1)]
        if self.guide is not None and (self.guide_scale < 1 or self.guide_cell not in cells):
            raise ValueError(
                f"the guide has a code every {self.guide_cell} px of the image (guide_scale "
                f"{self.guide_scale}); this U-Net takes one every {', '.join(map(str, cells))}"
            )

    @property
    def depth(self) -> int:
        """How often the resolution is halved."""
        return len(self.channels) - 1

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this; tiles that begin at multiples of it agree."""
        return 2**self.depth

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the decoder, from full resolution down."""
        return self.decoder or tuple(max(1, c // 2) for c in self.channels[:-1])

    @property
    def guide_cell(self) -> int:
        """Pixels of the image between codes of the guide; 0 without one."""
        return 0 if self.guide is None else self.guide.pitch * self.guide_scale

    @property
    def local(self) -> bool:
        """Whether a logit depends on its receptive field alone, and not on the rest of the tile."""
        return self.norm != "group" and not self.squeeze

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels before and after its own that a logit can depend on, at the worst place.

        Followed back through the layers for each place relative to the grid of the coarsest level.
        With group norm or squeeze-and-excitation the means of the whole tile come on top.
        """
        found = [self._seen(place) for place in range(self.stride)]
        before = max(place - low for place, (low, _) in enumerate(found))
        after = max(high - place for place, (_, high) in enumerate(found))
        return before, after

    @property
    def receptive_field(self) -> int:
        """Side of the patch around a pixel that its logit can depend on.

        >>> UNetConfig().receptive_field
        151
        """
        return sum(self.reach) + 1

    @property
    def halo(self) -> int:
        """What a tile needs around it: the reach, rounded up to the stride."""
        return -(-max(self.reach) // self.stride) * self.stride

    def _seen(self, place: int) -> tuple[int, int]:
        """First and last pixel that the logit at `place` depends on."""
        low = high = place
        skips = []
        for _ in range(self.depth):
            low, high = low - 2, high + 2  # a block: two 3 × 3 convolutions
            skips.append((low, high))
            if self.up == "bilinear":
                low, high = (low - 2) // 2, (high + 2) // 2  # 3 × 3, then between two neighbours
            else:
                low, high = low // 2, high // 2
        low, high = low - 3, high + 3  # the bottleneck's 7 × 7
        for level in range(self.depth, -1, -1):
            low, high = low - 2, high + 2
            if self.guide is not None and self.guide_cell == 2**level:
                # What the patches of its codes cover: in pixels of its own, then of the image.
                patch, centre = self.guide.geometry.trimmed // 2, _centre(self.guide)
                first = self.guide.pitch * low + centre - patch
                last = self.guide.pitch * high + centre + patch
                guided = (self.guide_scale * first, self.guide_scale * (last + 1) - 1)
            if level:
                low, high = (
                    (2 * low - 1, 2 * high + 1)
                    if self.down == "stride"
                    else (2 * low, 2 * high + 1)
                )
                skip = skips[level - 1]
                low, high = min(low, skip[0]), max(high, skip[1])
        if self.guide is not None:
            low, high = min(low, guided[0]), max(high, guided[1])
        return low, high


class UNet(nn.Module):
    """Slices (B, S, Y, X) in [0, 1] -> logits (B, C, Y, X); Y and X multiples of the stride.

    With deep supervision, in training: a list of logits, at full resolution, half of it, and so on.

    >>> unet = UNet(UNetConfig(classes=2))
    >>> unet(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 2, 64, 64])
    """

    Config = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        if not config.local:
            warnings.warn(
                "group norm and squeeze-and-excitation take means over the tile: every tile then has "
                "its own statistics, and a prediction depends on where tiles begin",
                stacklevel=2,
            )
        self.guide = None if config.guide is None else DenseEncoder(config.guide)
        make_block = partial(
            Block, norm=config.norm, activation=config.activation, squeeze=config.squeeze
        )
        inputs, encoder, downs = config.slices, [], []
        for level, channels in enumerate(config.channels):
            if level:
                stride = nn.Conv2d(inputs, inputs, 3, 2, 1, bias=config.norm == "none")
                downs.append(stride if config.down == "stride" else nn.MaxPool2d(2))
            if config.guide is not None and config.guide_cell == 2**level:
                inputs += config.guide.embedding
            encoder.append(make_block(inputs, channels, first=level == 0))
            inputs = channels
        self.encoder, self.downs = nn.ModuleList(encoder), nn.ModuleList(downs)
        self.bottleneck = Bottleneck(inputs, config)
        ups, decoder = [], []
        for skip, channels in zip(config.channels[-2::-1], config.widths[::-1], strict=True):
            ups.append(_up(inputs, channels, config))
            decoder.append(make_block(skip + channels, channels))
            inputs = channels
        self.ups, self.decoder = nn.ModuleList(ups), nn.ModuleList(decoder)
        heads = config.widths if config.deep_supervision else config.widths[:1]
        self.heads = nn.ModuleList(
            Head(channels, config.classes, norm=config.norm, activation=config.activation)
            for channels in heads
        )
        # With channels last, CPU and GPU convolutions need no reordering of their inputs.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of every pixel."""
        slices, *size = image.shape[1:]
        if slices != self.config.slices:
            raise ValueError(f"image has {slices} slices; this U-Net takes {self.config.slices}")
        check_size(size, (self.config.stride,) * 2)
        x = image.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = self.downs[level - 1](x)
            if self.guide is not None and self.config.guide_cell == 2**level:
                x = torch.cat([x, self._guidance(image).to(x.dtype)], 1)
            x = block(x)  # (B, channels, Y / 2^level, X / 2^level)
        x = self.bottleneck(x)
        levels: list[Tensor] = []
        for up, block in zip(self.ups, self.decoder, strict=True):
            x = block(torch.cat([up(x), skips.pop()], 1))
            levels.insert(0, x)
        if self.training and self.config.deep_supervision:
            return [head(level) for head, level in zip(self.heads, levels, strict=True)]
        logits: Tensor = self.heads[0](x)
        return logits

    def _guidance(self, image: Tensor) -> Tensor:
        """The guide's embedding at the centre of each of its cells: (B, E, Y / cell, X / cell)."""
        assert self.guide is not None
        config, middle = self.guide.config, self.config.slices // 2
        own = F.avg_pool2d(image[:, middle, None], self.config.guide_scale)
        before = config.geometry.trimmed // 2 - _centre(config)
        after = config.geometry.trimmed + 1 - config.pitch - before
        most = max(before, after)
        if min(own.shape[-2:]) <= most:  # what is reflected lies within the image
            stride, scale = self.config.stride, self.config.guide_scale
            side = -(-(most + 1) * scale // stride) * stride
            raise ValueError(
                f"image of {' × '.join(map(str, image.shape[-2:]))} px; a U-Net with this guide takes "
                f"sides of at least {side} px: pad it, or take larger tiles"
            )
        padded = F.pad(own, (before, after) * 2, mode="reflect")
        embedding: Tensor = self.guide(padded).embedding
        return embedding


class Block(nn.Module):
    """x + f(x), f being norm, activation and 3 × 3 convolution, twice: (B, I, Y, X) -> (B, O, Y, X)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        norm: Norm,
        activation: Activation,
        squeeze: bool = False,
        first: bool = False,
    ) -> None:
        super().__init__()
        biased = norm == "none"  # a norm that follows would take it away
        # The image itself is not rectified: half of what it says would be lost.
        self.norm1 = None if first else make_norm(inputs, norm)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=biased)
        self.norm2 = make_norm(outputs, norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=biased)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, bias=False)
        self.activate = make_activation(activation, norm)
        self.squeeze = SqueezeExcite(outputs) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block."""
        y = self.conv1(x if self.norm1 is None else self.activate(self.norm1(x)))
        y = self.squeeze(self.conv2(self.activate(self.norm2(y))))
        return y + self.shortcut(x)


class Bottleneck(nn.Module):
    """x + f(x): norm, GELU, depthwise 7 × 7, norm, GELU, 1 × 1: (B, C, Y, X) -> (B, C, Y, X)."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            make_norm(channels, config.norm),
            nn.GELU(),
            nn.Conv2d(
                channels, channels, 7, padding=3, groups=channels, bias=config.norm == "none"
            ),
            make_norm(channels, config.norm),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
            nn.Dropout2d(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block."""
        y: Tensor = x + self.layers(x)
        return y


class SqueezeExcite(nn.Module):
    """Weights the channels by a function of their means over the tile (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(4, channels // SQUEEZE)
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x with its channels weighted."""
        y: Tensor = x * self.layers(x)
        return y


class Head(nn.Sequential):
    """Norm, activation and 1 × 1 convolution: (B, I, Y, X) -> logits (B, C, Y, X)."""

    def __init__(self, inputs: int, classes: int, *, norm: Norm, activation: Activation) -> None:
        super().__init__(
            make_norm(inputs, norm),
            make_activation(activation, norm),
            nn.Conv2d(inputs, classes, 1),
        )


def make_activation(name: Activation, norm: Norm = "batch") -> nn.Module:
    """The activation by name, of what comes out of a norm."""
    # In place: a norm keeps its input, not its output. Without one, its input is what skips pass on.
    return nn.GELU() if name == "gelu" else nn.LeakyReLU(0.01, inplace=norm != "none")


def make_norm(channels: int, kind: Norm) -> nn.Module:
    """The norm by name."""
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return BatchNorm(channels)


def check_size(size: Sequence[int], stride: Sequence[int]) -> None:
    """Refuse an image that cannot be halved evenly."""
    if any(n % s or n == 0 for n, s in zip(size, stride, strict=True)):
        up = " × ".join(str(max(1, -(-n // s)) * s) for n, s in zip(size, stride, strict=True))
        raise ValueError(
            f"image of {' × '.join(map(str, size))} px; wanted multiples of "
            f"{' × '.join(map(str, stride))}: pad it, for instance to {up}"
        )


def effective_receptive_field(model: nn.Module, image: Tensor, *, share: float = 0.95) -> int:
    """Side of the square around a pixel that has `share` of the gradient of its logits.

    The gradient is that of the sum of the logits in the middle of images (B, S, Y, X), its magnitude
    averaged over them (Luo et al. 2016, Understanding the Effective Receptive Field). Images of noise
    show the architecture, real ones what was learnt. The model must be in evaluation mode.
    """
    if model.training:
        raise ValueError("the model is in training mode; call eval() first")
    image = image.detach().clone().requires_grad_()
    y, x = (n // 2 for n in image.shape[-2:])
    (gradient,) = torch.autograd.grad(model(image)[..., y, x].sum(), image)
    weight = gradient.abs().double().sum((0, 1))  # (Y, X)
    rows = (torch.arange(image.shape[-2]) - y).abs()
    columns = (torch.arange(image.shape[-1]) - x).abs()
    radius = torch.maximum(rows[:, None], columns[None]).to(weight.device)
    within = torch.bincount(radius.flatten(), weight.flatten()).cumsum(0)
    return 2 * int((within < share * within[-1]).sum()) + 1


def _up(inputs: int, outputs: int, config: UNetConfig) -> nn.Module:
    if config.up == "transpose":
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=config.norm == "none"),
    )


def _centre(guide: DenseEncoderConfig) -> int:
    """Pixel of a cell of its pitch that a code of the guide stands for."""
    return (guide.pitch - 1) // 2

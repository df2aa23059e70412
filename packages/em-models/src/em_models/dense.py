"""A dense encoder that cannot know where it is: valid convolutions, no padding.

Each code is a function of one patch of pixels. Zero padding would tell every pixel its distance
from the border of the crop, and a loss that can be lowered by coding *where* instead of *what* will
be. For the same reason the only norm over pixels is batch norm, which is a constant at inference.

The same weights run at any pitch: with all strides, one code every few pixels (training), or with
strides turned into dilation, up to one code for every pixel (prediction). Where two pitches have a
code, it is the same code.

`padding="zeros"` is there to be measured against: the same layers, told where they are.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from em_models.geometry import Geometry
from em_models.head import DenseCodes, Head, check_head, read_codes, stretch
from em_models.norm import BatchNorm


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
    """Stride of each convolution; without `code_pitch_vx` their product is the pitch of the codes."""
    dilations: tuple[int, ...] = (1, 1, 1, 1, 1, 2)
    """Dilation of each convolution."""
    pools: tuple[int, ...] = ()
    """Sides, odd, of the windows over which the last layer is averaged for the embedding, in
    steps of the product of the strides: they tell the texture around a place. None: the place
    alone."""
    code_pitch_vx: int | None = None
    """Pixels between codes. Strides beyond it spread the kernels instead: the same codes, more of them."""
    padding: Literal["none", "zeros"] = "none"
    """Border: none (codes only where the receptive field lies in the image) or zeros (codes up
    to the border, which then know their distance from it)."""
    head: Head = "cosine"
    """Classifier: cosine (cosines with prototypes, × sharpness) or linear (a 1 × 1
    convolution)."""
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
        if any(k % 2 == 0 or k < 1 for k in self.kernels):
            raise ValueError(f"kernels are {self.kernels}; wanted odd sizes")
        if any(side % 2 == 0 or side < 3 for side in self.pools):
            raise ValueError(f"pools are {self.pools}; wanted odd sides of at least 3")
        check_head(self.classes, self.embedding, self.head, self.sharpness)
        if self.padding not in ("none", "zeros"):
            raise ValueError(f"padding is {self.padding!r}; wanted none or zeros")
        strides = self.pitches[-1]
        if self.code_pitch_vx is not None and (
            self.code_pitch_vx < 1 or strides % self.code_pitch_vx
        ):
            raise ValueError(
                f"code_pitch_vx is {self.code_pitch_vx}; wanted a divisor of {strides}, the product "
                "of the strides"
            )

    @property
    def pitches(self) -> tuple[int, ...]:
        """Pixels between neighbouring outputs of each convolution, if all strides are taken."""
        return tuple(itertools.accumulate(self.strides, int.__mul__))

    @property
    def reaches(self) -> tuple[int, ...]:
        """Pixels that an output of each convolution sees on every side.

        Each grows by a multiple of the pitch before it, so every layer has an output in the centre
        of every later one.
        """
        before = (1, *self.pitches[:-1])
        grown = (
            pitch * dilation * (kernel // 2)
            for pitch, dilation, kernel in zip(before, self.dilations, self.kernels, strict=True)
        )
        return tuple(itertools.accumulate(grown))

    @property
    def reach(self) -> int:
        """Pixels that a code sees on every side."""
        return self.reaches[-1] + self.pitches[-1] * (max(self.pools, default=1) // 2)

    @property
    def pitch(self) -> int:
        """Pixels between neighbouring codes when run with strides."""
        return self.code_pitch_vx or self.pitches[-1]

    @property
    def margin(self) -> int:
        """Pixels at each border of the input that get no code."""
        return 0 if self.padding == "zeros" else self.reach

    @property
    def receptive_field(self) -> int:
        """Side of the patch that a code depends on, in pixels."""
        return 2 * self.reach + 1

    @property
    def geometry(self) -> Geometry:
        """How the codes lie in the image, and whether they can know where."""
        free = self.padding == "none"
        return Geometry(
            pitch=self.pitch,
            receptive_field=self.receptive_field,
            trimmed=2 * self.margin,
            position_free=free,
            reason=f"valid convolutions: a code is a function of its {self.receptive_field} px patch"
            if free
            else "zero padding tells a code how far it is from the border",
        )

    def crop_size(self, codes: int) -> int:
        """Pixels that give `codes` codes along one axis.

        >>> DenseEncoderConfig().crop_size(19)
        113
        """
        return self.geometry.crop_size(codes)


LAYOUTS = {
    "rf41": DenseEncoderConfig(),
    "rf25": DenseEncoderConfig(
        channels=(16, 32, 32, 64, 64),
        kernels=(5, 3, 3, 3, 3),
        strides=(2, 1, 1, 2, 1),
        dilations=(1, 1, 1, 1, 1),
    ),
    "rf73": DenseEncoderConfig(
        channels=(16, 32, 32, 64, 64, 64, 64),
        kernels=(5, 3, 3, 3, 3, 3, 3),
        strides=(2, 1, 1, 2, 1, 1, 1),
        dilations=(1, 1, 1, 1, 1, 2, 4),
    ),
    # The patch of rf41, and the texture around it.
    "rf65": DenseEncoderConfig(pools=(7,)),
    "rf81": DenseEncoderConfig(pools=(3, 7, 11)),
    # The first layer at full resolution, where membranes are a few pixels wide.
    "rf41-fine": DenseEncoderConfig(strides=(1, 2, 1, 2, 1, 1), dilations=(1, 2, 1, 1, 1, 2)),
}


def layout(name: str, *, width: float = 1.0, **changes: Any) -> DenseEncoderConfig:
    """A configuration by the side of its receptive field, `width` times as many channels.

    >>> layout("rf73", width=2, classes=20).receptive_field
    73
    """
    if name not in LAYOUTS:
        raise ValueError(f"no layout {name!r}; there are {', '.join(LAYOUTS)}")
    channels = tuple(max(1, round(width * c)) for c in LAYOUTS[name].channels)
    return dataclasses.replace(LAYOUTS[name], **{"channels": channels, **changes})


class DenseEncoder(nn.Module):
    """Image (B, 1, Y, X) -> logits over K classes and an embedding for every place.

    >>> encoder = DenseEncoder(DenseEncoderConfig())
    >>> encoder.config.receptive_field, encoder.config.pitch
    (41, 4)
    >>> encoder(torch.zeros(1, 1, 113, 113)).logits.shape
    torch.Size([1, 50, 19, 19])
    """

    Config = DenseEncoderConfig
    offset: Tensor | None

    def __init__(self, config: DenseEncoderConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (1, *config.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, k, bias=False)
            for i, o, k in zip(inputs, config.channels, config.kernels, strict=True)
        )
        self.norms = nn.ModuleList(BatchNorm(channels) for channels in config.channels)
        # The last layer at each pitch is seen by the embedding: fine and coarse context together.
        self.taps = [
            i
            for i, pitch in enumerate(config.pitches)
            if i + 1 == len(config.pitches) or config.pitches[i + 1] != pitch
        ]
        tapped = sum(config.channels[i] for i in self.taps)
        tapped += config.channels[-1] * len(config.pools)
        self.embed = nn.Conv2d(tapped, config.embedding, 1, bias=False)
        linear = config.head == "linear"
        # No affine parameters: a free scale would let one direction take over all prototypes.
        self.embed_norm = nn.Identity() if linear else BatchNorm(config.embedding, affine=False)
        scale = config.embedding**-0.5 if linear else 1  # logits of order 1 to begin with
        self.prototypes = nn.Parameter(scale * torch.randn(config.classes, config.embedding))
        self.bias = nn.Parameter(torch.zeros(config.classes)) if linear else None
        # How frequent classes are, where they were read off the embedding after training.
        self.register_buffer("offset", None if linear else torch.zeros(config.classes))

    @property
    def geometry(self) -> Geometry:
        """How the codes lie in the image, and whether they can know where."""
        return self.config.geometry

    def stretch(self, by: Tensor) -> None:
        """Change what counts as alike: the raw embedding is `by` (E, E) times what it was."""
        assert isinstance(self.embed_norm, BatchNorm), "of a cosine head"
        stretch(self.embed, self.embed_norm, by)

    def forward(self, image: Tensor, dense: bool = False) -> DenseCodes:
        """Codes of (B, 1, Y, X), one every `pitch` pixels, or one per pixel with `dense`.

        The code at (i, j) belongs to input pixel (margin + i·step, margin + j·step).
        """
        config, geometry = self.config, self.config.geometry
        geometry.check(image.shape[-2:])
        out = 1 if dense else config.pitch
        size = [geometry.codes(n, out) for n in image.shape[-2:]]  # (Y', X')
        x, tapped, pitch, step = image, [], 1, 1  # step: pixels between neighbours of x
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            kernel: Any = convolution.weight
            # Strides not taken so far spread the kernel, so that it meets the same pixels.
            dilation = config.dilations[i] * pitch // step
            pitch, before, step = config.pitches[i], step, math.gcd(config.pitches[i], out)
            pad = dilation * (config.kernels[i] // 2) if config.padding == "zeros" else 0
            x = F.conv2d(x, kernel, stride=step // before, padding=pad, dilation=dilation)
            x = F.relu(norm(x))
            if i in self.taps:
                lost = 0 if config.padding == "zeros" else config.reaches[i]
                tapped.append(_at_output(x, (config.margin - lost) // step, out // step, size))
        spread = config.pitches[-1] // step
        for side in config.pools:
            reach = spread * (side // 2)
            lost = 0 if config.padding == "zeros" else config.reaches[-1] + step * reach
            pooled = _average(x, side, spread, pad=reach if config.padding == "zeros" else 0)
            tapped.append(_at_output(pooled, (config.margin - lost) // step, out // step, size))
        raw = self.embed_norm(self.embed(torch.cat(tapped, 1)))
        return read_codes(
            raw,
            self.prototypes,
            sharpness=config.sharpness,
            bias=self.bias,
            offset=self.offset,
        )


def _average(features: Tensor, side: int, spread: int, *, pad: int) -> Tensor:
    """Means over `side` × `side` places, `spread` apart: (B, C, Y, X) -> (B, C, Y', X').

    Two convolutions, down and along: seven times as fast as average pooling on a CPU.
    """
    channels = features.shape[1]
    down = features.new_full((channels, 1, side, 1), 1 / side)
    once = F.conv2d(features, down, None, 1, (pad, 0), (spread, 1), channels)
    return F.conv2d(once, down.mT, None, 1, (0, pad), (1, spread), channels)


def _at_output(features: Tensor, first: int, step: int, size: list[int]) -> Tensor:
    """The features at the places of the output: (B, C, Y, X) -> (B, C, Y', X')."""
    rows, columns = (slice(first, first + (n - 1) * step + 1, step) for n in size)
    return features[:, :, rows, columns]


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)

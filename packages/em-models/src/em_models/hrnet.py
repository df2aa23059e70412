"""High-resolution networks for slices: every resolution is kept from the first layer to the last.

    image -> stem -> 16 ch at 1    ⟶ blocks ⟶ ⎫             ⎧ ⟶ blocks ⟶ …  -> logits
                  -> 32 ch at 1/2  ⟶ blocks ⟶ ⎬ sums of all ⎨ ⟶ blocks ⟶ …
                  -> 64 ch at 1/4  ⟶ blocks ⟶ ⎭             ⎩ ⟶ blocks ⟶ …

Branches exchange what they know again and again (Wang et al. 2020, Deep High-Resolution Representation
Learning for Visual Recognition), where a U-Net goes down once and up once. `HrNet` is a small one that
begins at full resolution; `TimmHrNet` is one of timm's, whose stem need not halve the image.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from em_models.norm import BatchNorm, share_norms
from em_models.timm_encoder import create_backbone
from em_models.unet import Activation, Block, Head, check_size, make_activation, make_norm

Span = tuple[int, int]  # first and last pixel


@dataclass(frozen=True, kw_only=True)
class HrNetConfig:
    """Shape of an `HrNet`."""

    classes: int = 1
    """Number of classes C, each with a logit of its own."""
    slices: int = 1
    """Slices of the input, as channels, the middle one being the target; odd."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the branches at full resolution, at half of it, and so on."""
    modules: int = 4
    """Number of exchanges between the branches."""
    blocks: int = 1
    """Residual blocks of every branch before each exchange."""
    activation: Activation = "leaky_relu"
    """Activation: leaky_relu or gelu."""
    norm: Literal["batch", "none"] = "batch"
    """Normalisation: batch or none."""

    def __post_init__(self) -> None:
        _check_ends(self.classes, self.slices)
        if len(self.channels) < 2 or min(self.channels) < 1:
            raise ValueError(
                f"channels are {self.channels}; wanted at least two branches of 1 or more, as "
                "(16, 32, 64)"
            )
        for name in ("modules", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this; tiles that begin at multiples of it agree."""
        return 2 ** (len(self.channels) - 1)

    @property
    def local(self) -> bool:
        """Whether a logit depends on its receptive field alone: always."""
        return True

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels before and after its own that a logit can depend on, at the worst place.

        Followed back through the layers for each place relative to the grid of the coarsest branch.
        """
        found = [self._seen(place) for place in range(self.stride)]
        before = max(place - low for place, (low, _) in enumerate(found))
        after = max(high - place for place, (_, high) in enumerate(found))
        return before, after

    @property
    def receptive_field(self) -> int:
        """Side of the patch around a pixel that its logit can depend on.

        >>> HrNetConfig().receptive_field
        82
        """
        return sum(self.reach) + 1

    @property
    def halo(self) -> int:
        """What a tile needs around it: the reach, rounded up to the stride."""
        return -(-max(self.reach) // self.stride) * self.stride

    def _seen(self, place: int) -> Span:
        """First and last pixel that the logit at `place` depends on."""
        branches = range(len(self.channels))
        spans = {0: (place, place)}  # of the branches, behind the exchange at hand
        for _ in range(self.modules):
            around = 2 * self.blocks  # two 3 × 3 convolutions each
            given = [_hull([_across(i, j, span) for i, span in spans.items()]) for j in branches]
            spans = {j: (low - around, high + around) for j, (low, high) in enumerate(given)}
        low, high = _hull([_across(i, 0, span) for i, span in spans.items()])
        return low - 2, high + 2  # the stem


class HrNet(nn.Module):
    """Slices (B, S, Y, X) in [0, 1] -> logits (B, C, Y, X); Y and X multiples of the stride.

    >>> HrNet(HrNetConfig(classes=2))(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 2, 64, 64])
    """

    Config = HrNetConfig

    def __init__(self, config: HrNetConfig) -> None:
        super().__init__()
        self.config = config
        finest, *others = config.channels
        self.stem = Block(
            config.slices, finest, norm=config.norm, activation=config.activation, first=True
        )
        self.downs = nn.ModuleList(
            _down(finest, channels, steps, config) for steps, channels in enumerate(others, start=1)
        )
        self.exchanges = nn.ModuleList(
            Exchange(config, last=number == config.modules - 1) for number in range(config.modules)
        )
        self.head = Head(finest, config.classes, norm=config.norm, activation=config.activation)
        # With channels last, CPU and GPU convolutions need no reordering of their inputs.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel."""
        _check_image(image, self.config.slices, self.config.stride)
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        branches = [x, *(down(x) for down in self.downs)]  # (B, channels, Y / 2^i, X / 2^i)
        for exchange in self.exchanges:
            branches = exchange(branches)
        logits: Tensor = self.head(branches[0])
        return logits


class Exchange(nn.Module):
    """Blocks of every branch, then each becomes the sum of all; the last gives the finest alone."""

    def __init__(self, config: HrNetConfig, *, last: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(
                    Block(channels, channels, norm=config.norm, activation=config.activation)
                    for _ in range(config.blocks)
                )
            )
            for channels in config.channels
        )
        goals = config.channels[:1] if last else config.channels
        self.paths = nn.ModuleList(
            nn.ModuleList(
                _path(j, i, inputs, outputs, config) for j, inputs in enumerate(config.channels)
            )
            for i, outputs in enumerate(goals)
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """(B, channels, Y / 2^i, X / 2^i) of each branch i, before and after."""
        found = [blocks(x) for blocks, x in zip(self.branches, branches, strict=True)]
        sums = []
        for paths in self.paths:
            assert isinstance(paths, nn.ModuleList)
            first, *others = (path(x) for path, x in zip(paths, found, strict=True))
            sums.append(sum(others, first))
        return sums


@dataclass(frozen=True, kw_only=True)
class TimmHrNetConfig:
    """What a `TimmHrNet` is made of."""

    classes: int = 1
    """Number of classes C, each with a logit of its own."""
    slices: int = 1
    """Slices of the input, as channels, the middle one being the target; odd."""
    backbone: str = "hrnet_w18_small"
    """Name of an HRNet of timm."""
    pretrained: bool = False
    """Start from timm's weights, which are fetched or taken from the cache."""
    stem_stride: Literal[1, 2, 4] = 1
    """Stride of the finest branch: 1, 2 or 4. Timm's own is 4; with 1 there are 16 times as many
    pixels."""
    width: int = 64
    """Channels in which the branches are joined."""

    def __post_init__(self) -> None:
        _check_ends(self.classes, self.slices)
        if not self.backbone.startswith("hrnet_"):
            raise ValueError(
                f"backbone is {self.backbone!r}; wanted an HRNet of timm, as hrnet_w18_small"
            )
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride is {self.stem_stride}; wanted 1, 2 or 4")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; wanted at least 1 channel")

    @property
    def stride(self) -> int:
        """Sides of the input are multiples of this; tiles that begin at multiples of it agree."""
        return 8 * self.stem_stride

    @property
    def local(self) -> bool:
        """Whether a logit depends on its receptive field alone: always."""
        return True

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels before and after its own that a logit can depend on, at the worst place: measured."""
        return _measured(self.backbone, self.stem_stride)

    @property
    def receptive_field(self) -> int:
        """Side of the patch around a pixel that its logit can depend on."""
        return sum(self.reach) + 1

    @property
    def halo(self) -> int:
        """What a tile needs around it: the reach, rounded up to the stride."""
        return -(-max(self.reach) // self.stride) * self.stride


class TimmHrNet(nn.Module):
    """Slices (B, S, Y, X) in [0, 1] -> logits (B, C, Y, X); Y and X multiples of the stride.

    All branches are joined at the resolution of the finest (HRNetV2, Wang et al. 2020). What is meant
    is a 1 × 1 convolution of all of them, interpolated and put together; each has its share of it
    before it is interpolated, which is the same and costs less.

    >>> TimmHrNet(TimmHrNetConfig(classes=2))(torch.zeros(1, 1, 16, 24)).shape
    torch.Size([1, 2, 16, 24])
    """

    Config = TimmHrNetConfig

    def __init__(self, config: TimmHrNetConfig) -> None:
        super().__init__()
        # The weights are in the model now: a copy of it needs no network.
        self.config = dataclasses.replace(config, pretrained=False)
        # feature_location "" gives the branches themselves; output 0 would be the stem.
        self.backbone = create_backbone(
            config.backbone,
            pretrained=config.pretrained,
            features_only=True,
            feature_location="",
            out_indices=(1, 2, 3, 4),
            in_chans=config.slices,
        )
        if config.stem_stride < 4:
            self.backbone.conv2.stride = (1, 1)
        if config.stem_stride < 2:
            self.backbone.conv1.stride = (1, 1)
        share_norms(self.backbone)
        channels = self.backbone.feature_info.channels()
        self.joins = nn.ModuleList(nn.Conv2d(c, config.width, 1, bias=False) for c in channels)
        self.head = nn.Sequential(
            BatchNorm(config.width),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.width, config.classes, 1),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel."""
        _check_image(image, self.config.slices, self.config.stride)
        levels = self.backbone(image.contiguous(memory_format=torch.channels_last))
        joined, *others = (join(level) for join, level in zip(self.joins, levels, strict=True))
        for step, x in enumerate(others, start=1):
            joined = joined + _enlarged(x, 2**step)  # (B, width, Y / stem, X / stem)
        return _enlarged(self.head(joined), self.config.stem_stride)


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear")


def _path(source: int, to: int, inputs: int, outputs: int, config: HrNetConfig) -> nn.Module:
    """From the branch `source` to the branch `to`: (B, inputs, …) -> (B, outputs, …)."""
    if source == to:
        return nn.Identity()
    if source < to:
        return _down(inputs, outputs, to - source, config)
    return nn.Sequential(  # both are linear: convolved first, fewer pixels and channels are left
        nn.Conv2d(inputs, outputs, 1, bias=config.norm == "none"),
        nn.Upsample(scale_factor=2 ** (source - to), mode="bilinear"),
    )


def _down(inputs: int, outputs: int, steps: int, config: HrNetConfig) -> nn.Module:
    """Halves the resolution `steps` times, by 3 × 3 convolutions."""
    layers: list[nn.Module] = []
    for step in range(steps):
        if step:
            layers += [
                make_norm(inputs, config.norm),
                make_activation(config.activation, config.norm),
            ]
        width = outputs if step == steps - 1 else inputs
        layers.append(nn.Conv2d(inputs, width, 3, 2, 1, bias=config.norm == "none"))
    return nn.Sequential(*layers)


def _across(to: int, source: int, span: Span) -> Span:
    """Pixels of the branch `source` that pixels of the branch `to` are computed from."""
    low, high = span
    for _ in range(source, to):
        low, high = 2 * low - 1, 2 * high + 1  # a 3 × 3 convolution with stride 2
    if source > to:
        # Bilinear: the centre of a pixel, at p + ½, lies between those of two coarse ones.
        factor = 2 ** (source - to)
        low, high = (2 * low + 1 - factor) // (2 * factor), (2 * high + 1 + factor) // (2 * factor)
    return low, high


def _hull(spans: list[Span]) -> Span:
    return min(low for low, _ in spans), max(high for _, high in spans)


@cache
def _measured(backbone: str, stem_stride: Literal[1, 2, 4]) -> tuple[int, int]:
    """Reach of a `TimmHrNet`, at the worst place: a single NaN marks all that depends on it."""
    with torch.random.fork_rng(devices=[]):  # to ask changes no weights drawn afterwards
        config = TimmHrNetConfig(backbone=backbone, stem_stride=stem_stride, width=1)
        network = TimmHrNet(config).eval()
    size = 256
    while True:
        places = torch.arange(size // 2, size // 2 + config.stride)
        image = torch.zeros(config.stride, 1, config.stride, size)
        image[torch.arange(config.stride), :, :, places] = math.nan
        with torch.no_grad():
            marked = network(image).isnan().any(2)[:, 0]  # (stride, size)
        seen = [row.nonzero().flatten() for row in marked]
        if min(int(s[0]) for s in seen) > 0 and max(int(s[-1]) for s in seen) < size - 1:
            before = max(int(s[-1]) - int(place) for s, place in zip(seen, places, strict=True))
            after = max(int(place) - int(s[0]) for s, place in zip(seen, places, strict=True))
            return before, after
        size *= 2


def _check_ends(classes: int, slices: int) -> None:
    if classes < 1:
        raise ValueError(f"classes is {classes}; wanted at least 1")
    if slices < 1 or slices % 2 == 0:
        raise ValueError(f"slices is {slices}; wanted an odd number, the target in the middle")


def _check_image(image: Tensor, slices: int, stride: int) -> None:
    if image.shape[1] != slices:
        raise ValueError(f"image has {image.shape[1]} slices; this HRNet takes {slices}")
    check_size(image.shape[2:], (stride, stride))

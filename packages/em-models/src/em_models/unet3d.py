"""The residual U-Net in three dimensions, for voxels that are taller than wide.

Where voxels are tall, the next slice is far away: the first levels convolve and halve within slices
only, and z joins where voxels have come close to cubes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from em_models.norm import BatchNorm
from em_models.unet import Activation, check_size, make_activation

Int3 = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class UNet3dConfig:
    """Shape of a `UNet3d`."""

    classes: int = 1
    """C, the number of classes, each with a logit of its own."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the encoder at full resolution and after each halving; the decoder has half."""
    kernels_z: tuple[int, ...] = (1, 3, 3, 3)
    """Size along z of the kernels of each level; along y and x it is 3."""
    strides_z: tuple[int, ...] = (1, 2, 2)
    """Divisor of z at each step down, 1 or 2; y and x are halved."""
    activation: Activation = "leaky_relu"
    """Activation: leaky_relu or gelu."""

    def __post_init__(self) -> None:
        levels = len(self.channels)
        if levels < 2 or min(self.channels) < 1:
            raise ValueError(
                f"channels are {self.channels}; wanted at least two levels of 1 or more"
            )
        if len(self.kernels_z) != levels or any(k < 1 or k % 2 == 0 for k in self.kernels_z):
            raise ValueError(f"kernels_z are {self.kernels_z}; wanted {levels} odd sizes")
        if len(self.strides_z) != levels - 1 or not set(self.strides_z) <= {1, 2}:
            raise ValueError(f"strides_z are {self.strides_z}; wanted {levels - 1} numbers, 1 or 2")

    @property
    def stride(self) -> Int3:
        """Sides of the input are multiples of this."""
        return math.prod(self.strides_z), self.in_plane, self.in_plane

    @property
    def local(self) -> bool:
        """A logit depends on its receptive field alone."""
        return True

    @property
    def in_plane(self) -> int:
        """What y and x are divided by in all."""
        return int(2 ** (len(self.channels) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the decoder, from full resolution down."""
        return tuple(max(1, c // 2) for c in self.channels[:-1])

    @property
    def reach(self) -> Int3:
        """Voxels along (z, y, x) that a logit can depend on, before or after its own.

        >>> UNet3dConfig().reach
        (23, 51, 51)
        """
        plane = self._reach([3] * len(self.channels), [2] * len(self.strides_z))
        return self._reach(list(self.kernels_z), list(self.strides_z)), plane, plane

    @property
    def halo(self) -> Int3:
        """What a tile needs around it: the reach, rounded up to the stride."""
        z, y, x = (-(-r // s) * s for r, s in zip(self.reach, self.stride, strict=True))
        return z, y, x

    def _reach(self, kernels: list[int], strides: list[int]) -> int:
        """The same along one axis, each place relative to the coarsest grid followed back."""
        farthest = 0
        for place in range(math.prod(strides)):
            low = high = place
            skips = []
            for kernel, stride in zip(kernels, strides, strict=False):
                low, high = low - (kernel - 1), high + (kernel - 1)  # two convolutions
                skips.append((low, high))
                low, high = low // stride, high // stride
            low, high = low - (kernels[-1] - 1), high + (kernels[-1] - 1)
            for level in range(len(strides) - 1, -1, -1):
                low, high = strides[level] * low, strides[level] * (high + 1) - 1
                low, high = min(low, skips[level][0]), max(high, skips[level][1])
                low, high = low - (kernels[level] - 1), high + (kernels[level] - 1)
            farthest = max(farthest, place - low, high - place)
        return farthest


class UNet3d(nn.Module):
    """Volumes (B, 1, Z, Y, X) in [0, 1] -> logits (B, C, Z, Y, X); sides multiples of the stride.

    >>> UNet3d(UNet3dConfig(classes=2))(torch.zeros(1, 1, 4, 16, 16)).shape
    torch.Size([1, 2, 4, 16, 16])
    """

    Config = UNet3dConfig

    def __init__(self, config: UNet3dConfig) -> None:
        super().__init__()
        self.config = config
        kernels = [(k, 3, 3) for k in config.kernels_z]
        strides = [(s, 2, 2) for s in config.strides_z]
        outputs = config.channels
        self.encoder = nn.ModuleList(
            Block3d(i, o, kernel, config.activation, first=i == 1 and level == 0)
            for level, (i, o, kernel) in enumerate(
                zip((1, *outputs), outputs, kernels, strict=False)
            )
        )
        self.downs = nn.ModuleList(nn.MaxPool3d(stride) for stride in strides)
        below = (*config.widths[1:], outputs[-1])
        # ConvTranspose3d's types know no tuple of its arguments' kind.
        up: Any = nn.ConvTranspose3d
        self.ups = nn.ModuleList(
            up(i, o, stride, stride)
            for i, o, stride in zip(below, config.widths, strides, strict=True)
        )
        self.decoder = nn.ModuleList(
            Block3d(skip + o, o, kernel, config.activation)
            for skip, o, kernel in zip(outputs, config.widths, kernels, strict=False)
        )
        last = config.widths[0]
        self.head = nn.Sequential(
            BatchNorm(last), make_activation(config.activation), nn.Conv3d(last, config.classes, 1)
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Logits of every voxel."""
        check_size(volume.shape[2:], self.config.stride)
        x, skips = volume, []
        for level, block in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = self.downs[level - 1](x)
            x = block(x)
        for level in range(len(self.ups) - 1, -1, -1):
            x = self.decoder[level](torch.cat([self.ups[level](x), skips[level]], 1))
        logits: Tensor = self.head(x)
        return logits


class Block3d(nn.Module):
    """x + f(x), f being norm, activation and convolution, twice: (B, I, Z, Y, X) -> (B, O, Z, Y, X)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        act: Activation,
        *,
        first: bool = False,
    ) -> None:
        super().__init__()
        size: Any = tuple(kernel)
        self.norm1 = None if first else BatchNorm(inputs)
        self.conv1 = nn.Conv3d(inputs, outputs, size, padding="same", bias=False)
        self.norm2 = BatchNorm(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, size, padding="same", bias=False)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv3d(inputs, outputs, 1, bias=False)
        self.activate = make_activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the block."""
        y = self.conv1(x if self.norm1 is None else self.activate(self.norm1(x)))
        y = self.conv2(self.activate(self.norm2(y)))
        return y + self.shortcut(x)

"""Samplers: pure functions `(seed, epoch, number) -> where and how`.

Randomness is counter-based (Philox), so a sample depends on nothing that was drawn before it: any
number of threads or ranks draws the same samples, and resuming needs no state beyond the step.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3


class Stream(IntEnum):
    """Independent streams of random numbers: what a number is used for."""

    PLACE = 0
    SYMMETRY = 1
    TARGET_SYMMETRY = 2
    PHOTOMETRY = 3


class Key(NamedTuple):
    """Which sample of which epoch: with the seed and a stream, all that randomness depends on."""

    epoch: int
    number: int


def random_at(seed: int, stream: int, key: Key) -> np.random.Generator:
    """The generator of one sample and one purpose.

    Seed and stream are separate key words, epoch and number the high counter words: no two uses
    share numbers, not even under neighbouring seeds.

    >>> random_at(0, Stream.PLACE, Key(0, 5)).integers(100).item()
    13
    """
    return np.random.Generator(
        np.random.Philox(key=[seed, stream], counter=[0, 0, key.number, key.epoch])
    )


class Sample(NamedTuple):
    """Where a sample lies: slices `slices_z` of one volume, in a window of y and x."""

    volume: int
    slices_z: tuple[int, ...]
    window_yx: tuple[int, int]  # first voxel
    size_vx: int
    key: Key

    @property
    def box(self) -> Box:
        """The smallest box that holds all of the slices."""
        y, x = self.window_yx
        depth = self.slices_z[-1] - self.slices_z[0] + 1
        return Box((self.slices_z[0], y, x), (depth, self.size_vx, self.size_vx))


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Stacks of slices around a target slice."""

    size_vx: int = 113
    """Side of the square window, in voxels."""
    offsets_z: tuple[int, ...] = (-2, -1, 0, 1, 2)
    """Slices of a stack relative to the target slice, ascending; 0 is the target."""

    def __post_init__(self) -> None:
        if self.size_vx < 1:
            raise BoxError(f"size_vx is {self.size_vx}; wanted at least 1 voxel")
        if 0 not in self.offsets_z or list(self.offsets_z) != sorted(set(self.offsets_z)):
            raise BoxError(
                f"offsets_z is {self.offsets_z}; wanted ascending slices with the target, 0, "
                "among them, for instance (-2, -1, 0, 1, 2)"
            )


class StackSampler:
    """Draws stacks uniformly over all places of all volumes, larger volumes more often.

    >>> sampler = StackSampler([(40, 512, 512)], StackConfig(size_vx=128), seed=0)
    >>> sampler(Key(epoch=0, number=0)).slices_z
    (1, 2, 3, 4, 5)
    """

    def __init__(self, shapes: Sequence[Int3], config: StackConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        first, last = config.offsets_z[0], config.offsets_z[-1]
        size = (last - first + 1, config.size_vx, config.size_vx)
        self.ranges: list[Int3] = []
        for shape in shapes:
            for axis, s, n in zip("zyx", size, shape, strict=True):
                if s > n:
                    raise BoxError(
                        f"crop {size} exceeds volume {tuple(shape)} on {axis}; "
                        "lower size_vx or take fewer slices"
                    )
            z, y, x = (n - s + 1 for s, n in zip(size, shape, strict=True))
            self.ranges.append((z, y, x))
        if not self.ranges:
            raise BoxError("no volume to sample from; give at least one")
        self._ends = list(itertools.accumulate(z * y * x for z, y, x in self.ranges))

    def __call__(self, key: Key) -> Sample:
        """The sample of `key`: any place in any volume, each as likely as every other."""
        place = int(random_at(self.seed, Stream.PLACE, key).integers(self._ends[-1]))
        volume = bisect.bisect_right(self._ends, place)
        place -= self._ends[volume - 1] if volume else 0
        z, y, x = (int(i) for i in np.unravel_index(place, self.ranges[volume]))
        target = z - self.config.offsets_z[0]
        slices = tuple(target + offset for offset in self.config.offsets_z)
        return Sample(volume, slices, (y, x), self.config.size_vx, key)

"""Samplers: pure functions `(seed, epoch, number) -> where`.

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
from em_data.geometry import Box, Int3, int3

# Philox(key=…, counter=…) draws a seed from the system and throws it away, which takes ten times as
# long as all the rest. Given any seed and then its state, it does not.
_UNUSED = np.random.SeedSequence(0)
_EMPTY = np.zeros(4, np.uint64)


class Stream(IntEnum):
    """Independent streams of random numbers: what a number is used for."""

    PLACE = 0
    SYMMETRY = 1
    TARGET_SYMMETRY = 2
    PHOTOMETRY = 3
    BLOCK = 4
    ORDER = 5


class Key(NamedTuple):
    """Which sample of which epoch: with the seed and a stream, all that randomness depends on."""

    epoch: int
    number: int


def random_at(seed: int, stream: int, key: tuple[int, int]) -> np.random.Generator:
    """The generator of one sample (or block) and one purpose.

    Seed and stream are separate key words, the two parts of the key are the high counter words: no
    two uses share numbers, not even under neighbouring seeds.

    >>> random_at(0, Stream.PLACE, Key(0, 5)).integers(100).item()
    13
    """
    philox = np.random.Philox(_UNUSED)
    philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, 0, key[1], key[0]], np.uint64),
            "key": np.array([seed, stream], np.uint64),
        },
        "buffer": _EMPTY,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.random.Generator(philox)


class Sample(NamedTuple):
    """Where a sample lies: a box of one volume."""

    volume: int
    box: Box
    key: Key


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

    @property
    def crop_vx(self) -> Int3:
        """The box that holds a stack."""
        return (self.offsets_z[-1] - self.offsets_z[0] + 1, self.size_vx, self.size_vx)

    @property
    def planes(self) -> tuple[int, ...]:
        """Slices of that box that belong to the stack."""
        return tuple(offset - self.offsets_z[0] for offset in self.offsets_z)


@dataclass(frozen=True, kw_only=True)
class CubeConfig:
    """Boxes of any shape."""

    size_vx: Int3 = (64, 64, 64)
    """Size (z, y, x) in voxels; thin in z where voxels are tall."""

    def __post_init__(self) -> None:
        if min(self.size_vx) < 1:
            raise BoxError(f"size_vx is {self.size_vx}; wanted at least 1 voxel along every axis")

    @property
    def crop_vx(self) -> Int3:
        """The box itself."""
        return self.size_vx

    @property
    def planes(self) -> tuple[int, ...]:
        """All of its slices."""
        return tuple(range(self.size_vx[0]))


CropConfig = StackConfig | CubeConfig


def places(shapes: Sequence[Int3], crop_vx: Int3) -> list[Int3]:
    """Number of places of a crop along each axis of each volume; refuses what does not fit.

    >>> places([(50, 1024, 1024)], (64, 256, 256))
    Traceback (most recent call last):
    ...
    em_data.errors.BoxError: crop (64, 256, 256) exceeds volume (50, 1024, 1024) on z; take a \
smaller crop or fewer slices
    """
    if not shapes:
        raise BoxError("no volume to sample from; give at least one")
    for number, shape in enumerate(shapes, 1):
        for axis, size, length in zip("zyx", crop_vx, shape, strict=True):
            if size > length:
                which = f" (volume {number} of {len(shapes)})" if len(shapes) > 1 else ""
                raise BoxError(
                    f"crop {crop_vx} exceeds volume {tuple(shape)} on {axis}{which}; "
                    "take a smaller crop or fewer slices"
                )
    return [int3([n - s + 1 for s, n in zip(crop_vx, shape, strict=True)]) for shape in shapes]


class PlaceSampler:
    """Every place of every volume is as likely as every other, independently of all samples before.

    >>> sampler = PlaceSampler([(40, 512, 512)], CubeConfig(size_vx=(5, 128, 128)), seed=0)
    >>> sampler(Key(epoch=0, number=0)).box.origin_vx
    (1, 96, 201)
    """

    def __init__(self, shapes: Sequence[Int3], config: CropConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.places = places(shapes, config.crop_vx)
        self._ends = list(itertools.accumulate(z * y * x for z, y, x in self.places))

    def __call__(self, key: Key) -> Sample:
        """The sample of `key`."""
        place = int(random_at(self.seed, Stream.PLACE, key).integers(self._ends[-1]))
        volume = bisect.bisect_right(self._ends, place)
        place -= self._ends[volume - 1] if volume else 0
        origin = int3([int(i) for i in np.unravel_index(place, self.places[volume])])
        return Sample(volume, Box(origin, self.config.crop_vx), key)

"""Samplers: pure functions `(seed, epoch, number) -> where`.

Randomness is counter-based (Philox), so a sample depends on nothing that was drawn before it: any
number of threads or ranks draws the same samples, and resuming needs no state beyond the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from em_data.aims import Aim, find_aims
from em_data.errors import BoxError
from em_data.geometry import Box, Int3
from em_data.places import Anywhere, Mixture, Places, Region, origins

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
    WARP = 6
    ELASTIC = 7
    SHIFT = 8
    DEFECT = 9
    EFFECT = 10
    NOISE = 11
    SPREAD = 12


class Key(NamedTuple):
    """Which sample of which epoch: with the seed and a stream, all that randomness depends on."""

    epoch: int
    number: int


def random_at(
    seed: int, stream: int, key: tuple[int, int], attempt: int = 0
) -> np.random.Generator:
    """The generator of one sample (or block) and one purpose.

    Seed and stream are separate key words, the two parts of the key are the high counter words and
    the attempt, where a draw is repeated, the next one: no two uses share numbers, not even under
    neighbouring seeds.

    >>> random_at(0, Stream.PLACE, Key(0, 5)).integers(100).item()
    13
    """
    philox = np.random.Philox(_UNUSED)
    philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, attempt, key[1], key[0]], np.uint64),
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
    def centre_vx(self) -> Int3:
        """The voxel of that box that stands for its place: in the target slice."""
        return (-self.offsets_z[0], self.size_vx // 2, self.size_vx // 2)

    @property
    def label_box(self) -> Box:
        """The part of that box whose labels are asked for: the target slice."""
        return Box((-self.offsets_z[0], 0, 0), (1, self.size_vx, self.size_vx))

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
    def centre_vx(self) -> Int3:
        """The voxel of the box that stands for its place."""
        z, y, x = self.size_vx
        return z // 2, y // 2, x // 2

    @property
    def label_box(self) -> Box:
        """The part of the box whose labels are asked for: all."""
        return Box((0, 0, 0), self.size_vx)

    @property
    def planes(self) -> tuple[int, ...]:
        """All of its slices."""
        return tuple(range(self.size_vx[0]))


CropConfig = StackConfig | CubeConfig


def mix_places(
    boxes: Sequence[Sequence[Box]],
    config: CropConfig,
    *,
    weights: Sequence[float] | None = None,
    aims: Sequence[Aim] = (),
    threads: int = 2,
) -> Mixture[Places]:
    """What samples are drawn from: the aims with their shares, for the rest any origin in `boxes`.

    Weights say how often each volume is drawn, relative to the others; without them every place of
    every volume is as likely as every other.
    """
    if weights is not None and (
        len(weights) != len(boxes) or min(weights) < 0 or not 0 < sum(weights) < np.inf
    ):
        raise ValueError(
            f"weights are {tuple(weights)} for {len(boxes)} volumes; wanted one for each, 0 or more, "
            "not all 0"
        )
    kinds = find_aims(aims, boxes, config.centre_vx, threads=threads) if aims else []
    for aim, places in zip(aims, kinds, strict=True):
        if weights is not None and not any(
            weight and one.count for weight, one in zip(weights, places, strict=True)
        ):
            raise BoxError(
                f"{aim.name!r} is found in no volume that is drawn, the weights being "
                f"{tuple(weights)}; give one that has it a weight, or leave this class out"
            )
    shares = [aim.share for aim in aims]
    rest = 1 - sum(shares)
    if rest > 1e-9:
        kinds.append(tuple(Anywhere(tuple(own)) for own in boxes))
        shares.append(rest)
    return Mixture(tuple(kinds), tuple(shares), tuple(weights) if weights is not None else None)


class PlaceSampler:
    """Every allowed place is as likely as every other, independently of all samples before.

    Args:
        shapes: voxels of each volume.
        config: what is cut out.
        seed: of the places.
        regions: where in each volume crops may lie; without them anywhere.
        weights: how often each volume is drawn; without them by the number of its places.
        aims: which share of the crops has what at its centre.

    >>> sampler = PlaceSampler([(40, 512, 512)], CubeConfig(size_vx=(5, 128, 128)), seed=0)
    >>> sampler(Key(epoch=0, number=0)).box.origin_vx
    (1, 96, 201)
    """

    def __init__(
        self,
        shapes: Sequence[Int3],
        config: CropConfig,
        seed: int,
        *,
        regions: Sequence[Region] | None = None,
        weights: Sequence[float] | None = None,
        aims: Sequence[Aim] = (),
        threads: int = 2,
    ) -> None:
        self.config = config
        self.seed = seed
        self.boxes = origins(shapes, config.crop_vx, config.centre_vx, regions)
        self.mixture = mix_places(self.boxes, config, weights=weights, aims=aims, threads=threads)

    def __call__(self, key: Key, attempt: int = 0) -> Sample:
        """The sample of `key`, or another for it where the ones before were refused."""
        volume, origin = self.mixture.draw(random_at(self.seed, Stream.PLACE, key, attempt))
        return Sample(volume, Box(origin, self.config.crop_vx), key)

"""Hold-outs: which part of each volume is for training and which one for validation.

Between the two lies a gap that belongs to neither: no training crop touches what a validation crop
may read around a held-out voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, bounds, end_of, int3, intersect, span
from em_data.sampler.crop import CropConfig
from em_data.sampler.places import Region, centred, whole


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is held out for validation, in every volume."""

    last_z: float = 0.2
    """Share of the slices that is held out at the end, where neither z nor boxes are given."""
    z: tuple[int, int] | None = None
    """Held-out slices, half-open: (880, 900) are slices 880 to 899."""
    boxes: tuple[Box, ...] = ()
    """Held-out boxes: origin and size in voxels."""
    gap_vx: Int3 | None = None
    """Voxels around held-out parts that nobody is trained on. Without it, what a crop reads
    around a held-out voxel: half a crop, at least one voxel, along each axis."""

    def __post_init__(self) -> None:
        if not 0 <= self.last_z < 1:
            raise BoxError(
                f"last_z is {self.last_z:g}; wanted a share of the slices, 0 ≤ share < 1"
            )
        if self.z is not None and self.boxes:
            raise BoxError(
                f"slices {self.z} and {len(self.boxes)} boxes are held out; give one of both"
            )
        if self.z is not None and not 0 <= self.z[0] < self.z[1]:
            raise BoxError(
                f"held-out slices {self.z} are empty; wanted first < last, as (880, 900)"
            )
        if self.gap_vx is not None and min(self.gap_vx) < 0:
            raise BoxError(f"gap_vx is {self.gap_vx}; wanted 0 or more voxels along every axis")


@dataclass(frozen=True)
class Split:
    """Regions of each volume, as samplers take them."""

    training: tuple[Region, ...]
    validation: tuple[Region, ...]
    """Crops with a held-out voxel at their centre; they may read the gap."""
    held_out: tuple[tuple[Box, ...], ...]
    """The held-out boxes themselves, of each volume."""


def hold_out(
    shapes: Sequence[Int3],
    crop: CropConfig,
    config: SplitConfig | None = None,
    *,
    covered: Sequence[Sequence[Box]] | None = None,
) -> Split:
    """Split volumes for training and validation with crops of one shape.

    Args:
        shapes: voxels of each volume.
        crop: what is cut out for training and for validation.
        config: what is held out; the last fifth of the slices without it.
        covered: the labelled boxes of each volume (`Labels.covered`): the share at the end is taken of
            them, and crops of both parts have their centres in them.

    >>> from em_data.sampler import StackConfig
    >>> split = hold_out([(20, 512, 512)], StackConfig(size_vx=128))
    >>> split.held_out[0], split.training[0].inside
    ((Box(origin_vx=(16, 0, 0), size_vx=(4, 512, 512)),), (Box(origin_vx=(0, 0, 0), size_vx=(14, 512, 512)),))
    """
    config = config or SplitConfig()
    gap_vx = config.gap_vx or reach_of(crop)
    training, validation, held_out = [], [], []
    for number, shape in enumerate(shapes):
        everything = whole(shape)
        labelled = covered[number] if covered is not None else None
        held = _held(shape, config, bounds(labelled) if labelled else everything.inside[0])
        with_gap = [_grown(box, gap_vx, shape) for box in held]
        train = Region(tuple(_outside(everything.inside[0], with_gap)))
        check = Region(tuple(with_gap), held)
        if labelled is not None:
            train, check = centred(train, labelled), centred(check, labelled)
            if held and not check.centres:
                raise BoxError(
                    f"nothing that is held out of volume {number + 1} is labelled: labels lie in "
                    f"z {bounds(labelled).origin_vx[0]}:{end_of(bounds(labelled))[0]}; hold out a part of that"
                )
        training.append(train)
        validation.append(check)
        held_out.append(held)
    return Split(tuple(training), tuple(validation), tuple(held_out))


class ImageSplit(NamedTuple):
    """Numbers of the images of a collection; no image is in both."""

    training: np.ndarray  # (N,)
    held: np.ndarray  # (M,)


def hold_out_images(count: int, held: float | tuple[int, int]) -> ImageSplit:
    """Split a collection by its images: never a part of one for training and another held out.

    Args:
        count: how many images there are.
        held: their share or, from 1 on, their number, evenly spread over all; or a range of them, half
            open: (100, 120) are 100 to 119. Neighbours in the order of names are often of one
            specimen: where they are, a range tells more about others.

    >>> hold_out_images(10, 0.2)
    ImageSplit(training=array([0, 1, 3, 4, 5, 6, 8, 9]), held=array([2, 7]))
    """
    if isinstance(held, tuple):
        first, end = held
        if not 0 <= first < end <= count:
            raise BoxError(
                f"held-out images {first}:{end} are not among {count}; wanted 0 ≤ first < end ≤ {count}"
            )
        chosen = np.arange(first, end)
    else:
        if not (0 <= held < 1 or held == int(held) >= 1):
            raise BoxError(
                f"{held:g} images are held out; wanted a share from 0 to below 1, or a whole number"
            )
        wanted = int(held) if held >= 1 else math.ceil(held * count)
        if wanted > count:
            raise BoxError(f"{wanted} of {count} images are held out; hold out fewer")
        chosen = ((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)
    training = np.setdiff1d(np.arange(count), chosen)
    if not len(training):
        raise BoxError(
            f"all of {count} images are held out and none is left for training; hold out fewer, or "
            "give more images"
        )
    return ImageSplit(training, chosen)


def _held(shape: Int3, config: SplitConfig, labelled: Box) -> tuple[Box, ...]:
    for box in config.boxes:
        inside = min(box.origin_vx) >= 0 and min(box.size_vx) > 0
        if not inside or any(e > n for e, n in zip(end_of(box), shape, strict=True)):
            raise BoxError(
                f"held-out box of {box.size_vx} voxels at {box.origin_vx} leaves the volume {tuple(shape)}; "
                "give a box inside it"
            )
    if config.boxes:
        return config.boxes
    if config.z is not None:
        start, stop = config.z
        if stop > shape[0]:
            raise BoxError(
                f"held-out slices {start}:{stop} leave the volume, which has slices 0:{shape[0]}; "
                "give a range inside it"
            )
    else:
        stop = end_of(labelled)[0]
        start = stop - math.ceil(config.last_z * labelled.size_vx[0])
    return (span((start, 0, 0), (stop, shape[1], shape[2])),) if start < stop else ()


def reach_of(crop: CropConfig) -> Int3:
    """How far a crop reaches from its centre voxel, at least to the next one."""
    sides = zip(crop.crop_vx, crop.centre_vx, strict=True)
    return int3([max(1, centre, size - 1 - centre) for size, centre in sides])


def _grown(box: Box, by_vx: Int3, shape: Int3) -> Box:
    low = [max(0, o - d) for o, d in zip(box.origin_vx, by_vx, strict=True)]
    high = [min(n, e + d) for e, d, n in zip(end_of(box), by_vx, shape, strict=True)]
    return span(low, high)


def _outside(box: Box, holes: Sequence[Box]) -> list[Box]:
    """The largest boxes that touch no hole; they overlap, so that no crop between two is lost."""
    found = [box]
    for hole in holes:
        parts = []
        for part in found:
            common = intersect(part, hole)
            if common is None:
                parts.append(part)
                continue
            low, high = part.origin_vx, end_of(part)
            for axis in range(3):
                below, above = list(high), list(low)
                below[axis], above[axis] = common.origin_vx[axis], end_of(common)[axis]
                if below[axis] > low[axis]:
                    parts.append(span(low, below))
                if above[axis] < high[axis]:
                    parts.append(span(above, high))
        found = [p for i, p in enumerate(parts) if not _contained(p, parts[:i] + parts[i + 1 :], i)]
    return found


def _contained(box: Box, others: Sequence[Box], before: int) -> bool:
    """Whether another box holds this one; of two equal ones only the later is."""
    return any(
        intersect(box, other) == box and (other != box or number < before)
        for number, other in enumerate(others)
    )

"""Slices that a restoration is judged on: the truth, and what is shown of it, once or twice.

Where a better scan is named, it is the truth of what was given. Otherwise the volume itself is: copies
of it are damaged as those were that the run learned from, twice, so that what both copies of a slice
agree on can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from em_data import Box, GreyRange, Images, Key, Labels, Volume, interpolated, match_labels
from em_data import place_target as place
from em_data.augment import degrade
from em_data.augment.sampling import coarsen, refine
from em_data.geometry import int3
from em_data.intensity import range_of

from em_train.engine.grey import choose
from em_train.engine.reading import is_collection, open_collection, open_raw
from em_train.judge.ranges import fit_and_score
from em_train.judge.truth import Protocol
from em_train.restore.comparison import Case
from em_train.restore.data import damage_of, saturated
from em_train.restore.predict import open_at_scale
from em_train.restore.run import RestoreRun

JUDGED = 2**33  # the epoch that damage of judged slices is drawn for: no sample has it
SIDE_VX = 512  # of the middle of a slice that is judged, at most
CHOSEN = 4  # slices that settings of filters are chosen on


class Slices(NamedTuple):
    """Slices to choose filters on, and others to score."""

    choose: list[Case]
    score: list[Case]
    pixel_nm: float | None
    grey: str


class Given(NamedTuple):
    """A slice and its neighbours, as stored, and the box of it that is judged."""

    volume: Volume
    box: Box
    grey: GreyRange
    where: str
    target: Labels | None


def slices_of(
    stored: RestoreRun,
    run: Path,
    address: str,
    target: str | None,
    protocol: Protocol,
    grey: str,
) -> Slices:
    """Slices of a volume, or images of a collection, apart from each other.

    Args:
        stored: the run.
        run: its folder.
        address: what is restored, or, without a target, what is damaged and restored.
        target: what the result should look like.
        protocol: which slices (of a collection: which images), at most how many.
        grey: which grey values are 0 and 1, see `em_train.engine.grey.choose`.
    """
    if is_collection(address):
        images = open_collection(replace(stored.data, volumes=(address,)), hold=False)
        assert images is not None
        find, count = of_images(images, target), len(images)
        pixel, told = images.voxel_size_nm, "of each image its own"
    else:
        if target is None:
            volume = open_raw(address, stored.data, stored.voxel_size_nm or stored.data.at_nm)
        else:
            volume = open_at_scale(stored, address)
        volume.check_one_channel()
        chosen = choose(run, volume, grey)
        find, count = of_volume(stored, volume, chosen.range, target), volume.shape[0]
        pixel, told = volume.voxel_size_nm, str(chosen)
    fit, score = fit_and_score(range(count), protocol.fit_z, protocol.score_z, address)
    make = case_of_pair if target else case_of_copies
    finer = stored.factor if target else 1
    return Slices(
        [make(stored, find(n)) for n in spread(fit, CHOSEN)],
        [make(stored, find(n)) for n in spread(score, protocol.slices)],
        pixel[1] / finer if pixel else None,
        told,
    )


def spread(chosen: tuple[int, int], most: int) -> list[int]:
    """At most so many of a range of numbers, evenly.

    >>> spread((4, 14), 3)
    [5, 9, 12]
    """
    first, end = chosen
    count = min(most, end - first)
    return [first + int((i + 0.5) * (end - first) / count) for i in range(count)]


def of_images(images: Images, target: str | None) -> Callable[[int], Given]:
    """The images of a collection by their number."""
    targets = match_labels(images, {"target": target}) if target else None

    def find(number: int) -> Given:
        volume = images[number].held_in_memory()
        box = middle(volume, 0, 1)
        own = targets[number] if targets else None
        whole = volume.read(Box((0, 0, 0), volume.shape))
        return Given(volume, box, range_of([whole]), f"image {images.name(number)}", own)

    return find


def of_volume(
    stored: RestoreRun, volume: Volume, grey: GreyRange, target: str | None
) -> Callable[[int], Given]:
    """The slices of a volume by their number."""
    labels = None
    if target:
        size = stored.voxel_size_nm or stored.data.at_nm
        fine = interpolated(volume, (1, stored.factor, stored.factor))
        labels = place(fine, open_raw(target, stored.data, size))
    step = 1 if target else stored.factor  # coarse pixels of copies are whole

    def find(number: int) -> Given:
        return Given(volume, middle(volume, number, step), grey, f"z {number}", labels)

    return find


def middle(volume: Volume, z: int, step: int) -> Box:
    """The middle of a slice, its sides multiples of `step`."""
    sides = [min(n, SIDE_VX) // step * step for n in volume.shape[1:]]
    origin = [(n - s) // 2 for n, s in zip(volume.shape[1:], sides, strict=True)]
    return Box(int3([z, *origin]), int3([1, *sides]))


def stack_at(given: Given, slices: int) -> np.ndarray:
    """A slice with its neighbours, at the ends of the volume the slice again: (S, Y, X) from 0 to 1."""
    reach, depth, z = slices // 2, given.volume.shape[0], given.box.origin_vx[0]
    numbers = [min(max(0, z + d), depth - 1) for d in range(-reach, reach + 1)]
    _, y, x = given.box.origin_vx
    planes = [given.volume.read(Box((n, y, x), given.box.size_vx)) for n in numbers]
    return given.grey.unit(np.concatenate(planes), clip=False)


def case_of_copies(stored: RestoreRun, given: Given) -> Case:
    """A slice as the truth of two damaged copies; of super-resolution of a coarser one."""
    image = torch.from_numpy(stack_at(given, stored.data.slices))[None]  # (1, S, Y, X)
    truth = image[0, image.shape[1] // 2].numpy()
    if stored.factor > 1:
        return Case(given.where, coarsen(image, stored.factor)[0].numpy(), truth)
    keys, damage = [Key(JUDGED, given.box.origin_vx[0])], damage_of(stored.data)
    copies = [
        saturated(degrade(image, keys, damage, seed=0, copy=copy), given.volume.dtype, given.grey)
        for copy in (0, 1)
    ]
    return Case(given.where, copies[0][0].numpy(), truth, copies[1][0].numpy())


def case_of_pair(stored: RestoreRun, given: Given) -> Case:
    """A slice and its better scan."""
    assert given.target is not None
    factor = stored.factor
    scaled = [
        int3([z, y * factor, x * factor]) for z, y, x in (given.box.origin_vx, given.box.size_vx)
    ]
    box = Box(*scaled)
    if not given.target.valid(box).all():
        raise ValueError(
            f"{given.where}: the target does not cover the middle of {given.volume.source}; give "
            "slices that it covers, with --fit-z and --score-z"
        )
    truth = given.grey.unit(given.target.read(box)[0, 0], clip=False)
    return Case(given.where, stack_at(given, stored.data.slices), truth)


def restorer(stored: RestoreRun) -> Callable[[np.ndarray], np.ndarray]:
    """The run as a function of an image: (Z, Y, X) or (Y, X) -> (Y, X), finer for super-resolution."""

    def restore(image: np.ndarray) -> np.ndarray:
        shown = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        shown = shown[None] if shown.dim() == 3 else shown.expand(1, stored.data.slices, -1, -1)
        if stored.factor > 1:
            shown = refine(shown, stored.factor, [n * stored.factor for n in shown.shape[2:]])
        return stored.restore(shown)[0].numpy()

    return restore

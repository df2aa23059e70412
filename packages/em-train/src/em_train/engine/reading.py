"""How recipes read: volumes at one physical scale, held where memory allows, and batches of them.

What a sample is differs from recipe to recipe and stands in `<recipe>/data.py`; how volumes are opened
and how samples become batches does not.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from em_data import (
    BlockSampler,
    Box,
    BudgetError,
    GreyRange,
    Images,
    Key,
    Labels,
    Stream,
    Volume,
    VolumeReadError,
    binned,
    choose_sampler,
    nan_share,
    open_images,
    open_volume,
    random_at,
)
from em_data.formats.images import SCHEME as IMAGES
from em_data.geometry import Int3, bounds, int3
from em_data.loader import Loader

from em_train.engine import distributed
from em_train.engine.progress import say

MOST_GIB = 2**20
CHECKED, CHECKED_VX = 4, (8, 128, 128)  # boxes of a volume that stand for it: 512 KiB of bytes
CHECKED_VOLUMES = 32  # of many
SAME_SCALE = 1.1  # largest ratio of the voxel sizes of volumes that are learned together


class SourceConfig(Protocol):
    """What volumes may be like."""

    @property
    def nan(self) -> Literal["refuse", "mask"]: ...
    @property
    def gaps(self) -> Literal["refuse", "close"]: ...


class ScaleConfig(SourceConfig, Protocol):
    """At which scale volumes are read."""

    @property
    def volumes(self) -> tuple[str, ...]: ...
    @property
    def at_nm(self) -> tuple[float, float, float] | None: ...
    @property
    def pixel_nm(self) -> float | None: ...
    @property
    def memory_gib(self) -> float: ...


class CollectionConfig(SourceConfig, Protocol):
    """Where images may lie."""

    @property
    def volumes(self) -> tuple[str, ...]: ...
    @property
    def memory_gib(self) -> float: ...


class BatchConfig(Protocol):
    """How samples become batches."""

    @property
    def batch_size(self) -> int: ...
    @property
    def samples_per_epoch(self) -> int: ...
    @property
    def memory_gib(self) -> float: ...
    @property
    def threads(self) -> int: ...


def open_raw(
    address: str, config: SourceConfig, at_nm: tuple[float, float, float] | None
) -> Volume:
    """A raw volume, with what the run asks for about missing slices and voxels that are no numbers."""
    return replace(open_volume(address, at_nm=at_nm, gaps=config.gaps), nan=config.nan)


def open_at(address: str, config: ScaleConfig) -> Volume:
    """A volume at the scale that is learned: as it is at `at_nm`, or averaged down to `pixel_nm`."""
    volume = open_raw(address, config, config.at_nm)
    pixel, size = config.pixel_nm, volume.voxel_size_nm
    if config.at_nm or pixel is None or size is None:
        return volume
    if len(volume.levels) > 1:
        volume = open_raw(address, config, (max(size[0], pixel), pixel, pixel))
        size = volume.voxel_size_nm or size
    return binned(volume, (1, *(max(1, round(pixel / s)) for s in size[1:])))


def open_volumes(config: ScaleConfig, *, hold: bool = True) -> list[Volume]:
    """The raw volumes of one scale, held in memory where all of them fit."""
    volumes = [open_at(address, config) for address in config.volumes]
    if not volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    check_scale(volumes)
    if hold and sum(volume.nbytes for volume in volumes) <= budget_of(config):
        volumes = [volume.held_in_memory() for volume in volumes]
    if hold:
        announce_nan(volumes)
    return volumes


def is_collection(address: str) -> bool:
    """Whether an address names a collection of images rather than one volume."""
    return address.startswith(IMAGES)


def open_collection(config: CollectionConfig, *, hold: bool = True) -> Images | None:
    """The collection of images that is learned from, held in memory where it fits; None of volumes.

    It is read alone, and its images have one scale: that of the address.
    """
    given = [address for address in config.volumes if is_collection(address)]
    if not given:
        return None
    if len(config.volumes) > 1:
        others = ", ".join(address for address in config.volumes if address is not given[0])
        raise ValueError(
            f"{given[0]} is a collection of images, which is learned from alone; beside it are given "
            f"{others}: leave them out, or put all images into one folder"
        )
    images = open_images(given[0]).treating(config.nan)
    return images.held_in_memory() if hold and images.nbytes <= budget_of(config) else images


def announce_nan(volumes: Sequence[Volume]) -> None:
    """Say which share of the voxels is left out, where some may be."""
    for volume in volumes:
        if volume.nan == "mask" and (share := nan_share(volume)):
            say(
                f"data    {volume.source}: {share:.2%} of the voxels are NaN or infinite; no sample "
                "holds one (data.nan=mask)"
            )


def check_scale(volumes: Sequence[Volume]) -> None:
    """Refuse volumes whose voxels differ in size, or with channels: one network sees one scale."""
    for volume in volumes:
        volume.check_one_channel()
    sizes = [volume.voxel_size_nm for volume in volumes if volume.voxel_size_nm is not None]
    for axis, values in zip("zyx", zip(*sizes, strict=True), strict=False):
        if max(values) > SAME_SCALE * min(values):
            raise ValueError(
                f"the volumes have voxels of {min(values):g} to {max(values):g} nm along {axis}; one "
                "network sees one scale: choose levels that match, with data.at_nm"
            )


def budget_of(config: CollectionConfig | BatchConfig) -> int:
    """Bytes of memory for voxels."""
    return gib_bytes(config.memory_gib, "data.memory_gib")


def gib_bytes(gib: float, name: str) -> int:
    """GiB in bytes; a number that no machine has is refused by its name."""
    if not 0 < gib <= MOST_GIB:
        raise ValueError(f"{name} is {gib:g}; wanted GiB of memory, above 0 and at most {MOST_GIB}")
    return int(gib * 2**30)


def check_batch(voxels: int, config: BatchConfig) -> None:
    """Refuse a batch that this machine cannot hold, before anything is read for it."""
    nbytes, there = 4 * voxels * config.batch_size // distributed.size(), machine_bytes()
    if there and nbytes > there:
        raise MemoryError(
            f"a batch of {config.batch_size} crops takes {nbytes / 2**30:,.0f} GiB as float32, and this "
            f"machine has {there / 2**30:.0f} GiB; lower data.batch_size, or take smaller crops"
        )


def machine_bytes() -> int | None:
    """The memory of this machine; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def load(
    volumes: Sequence[Volume],
    crop: Any,
    config: BatchConfig,
    *,
    seed: int,
    served: dict[str, Any] | None = None,
    **drawn: Any,
) -> Loader:
    """Batches of independent places, or by block shuffle where the memory is too small for all.

    Args:
        volumes: what is read.
        crop: what a sample is.
        config: how many samples, in how much memory.
        seed: another seed, other samples.
        served: more of `em_data.loader.Loader`.
        drawn: more of `em_data.choose_sampler`, such as the regions that samples lie in.
    """
    check_batch(math.prod(crop.crop_vx), config)
    try:
        sampler = choose_sampler(
            volumes,
            crop,
            seed=seed,
            samples_per_epoch=config.samples_per_epoch,
            slots=config.batch_size,
            budget_bytes=budget_of(config),
            **drawn,
        )
    except BudgetError as error:
        raise BudgetError(f"data.memory_gib is {config.memory_gib:g}: {error}") from None
    return Loader(
        volumes,
        sampler,
        batch_size=distributed.share(config.batch_size, "data.batch_size"),
        samples_per_epoch=config.samples_per_epoch,
        threads=config.threads,
        rank=distributed.rank(),
        world=distributed.size(),
        **(served or {}),
    )


@dataclass(frozen=True)
class Fingerprint:
    """What the samples depend on besides the configuration: a resumed run must find it unchanged."""

    text: str
    ranges: tuple[GreyRange, ...] = ()  # of the volumes


def fingerprint_data(loader: Loader, *more: object) -> Fingerprint:
    """That of a loader, and of what else is said about its samples."""
    if isinstance(loader.volumes, Images):  # each is read with a range of its own
        found = checksum(loader.volumes, loader.labels or ())
        return Fingerprint(
            ", ".join([_numbers_of(loader.volumes), *map(str, more), f"checksum {found:08x}"])
        )
    parts = [
        f"{volume.dtype} {volume.shape} of {grey.low:.4g} to {grey.high:.4g}"
        for volume, grey in zip(loader.volumes, loader.ranges, strict=True)
    ]
    parts += [str(one) for one in more]
    if isinstance(loader.sampler, BlockSampler):
        parts.append(f"blocks {loader.sampler.plan}")
    found = checksum(loader.volumes, loader.labels or ())
    parts.append(f"checksum {found:08x}")
    return Fingerprint(", ".join(parts), tuple(loader.ranges))


def checksum(volumes: Sequence[Volume], labels: Sequence[Labels | None] = ()) -> int:
    """Of the voxels and labels of some boxes, always the same ones: cheap, wherever they lie."""
    found = 0
    for number in range(0, len(volumes), -(-len(volumes) // CHECKED_VOLUMES)):
        volume, own = volumes[number], labels[number] if labels else None
        if isinstance(volumes, Images):  # decoded whole, whatever is asked of it
            whole = Box((0, 0, 0), volume.shape)
            with suppress(*((VolumeReadError,) if volumes.skips_unreadable else ())):
                found = _add(volume.read(whole), found)
            found = found if own is None else _add(own.read(whole), found)
            continue
        for box in _boxes_of(Box((0, 0, 0), volume.shape), number, volume.chunk_vx):
            found = _add(volume.read(box), found)
        if own is not None and own.covered:
            for box in _boxes_of(bounds(own.covered), number, None):
                found = _add(own.read(box), found)
    return found


def _numbers_of(images: Images) -> str:
    """What is known of a collection without reading it, wherever it lies."""
    names = zlib.crc32(b"/".join(images.names.tolist()))
    listed = _add(images.shapes.astype(np.int32), names)
    return f"{len(images)} images {images.dtype}, {images.nbytes} bytes, listed {listed:08x}"


def _add(values: np.ndarray, found: int) -> int:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return zlib.crc32(np.ascontiguousarray(little).data, found)


def _boxes_of(within: Box, number: int, chunk_vx: Int3 | None) -> Iterator[Box]:
    """Some boxes in the part of a volume that counts, from the beginnings of chunks."""
    size = [min(n, s) for n, s in zip(within.size_vx, CHECKED_VX, strict=True)]
    for key in range(CHECKED):
        draw = random_at(0, Stream.PLACE, Key(number, key)).integers
        origin = [
            o + int(draw(n - s + 1)) // c * c
            for o, n, s, c in zip(
                within.origin_vx, within.size_vx, size, chunk_vx or (1, 1, 1), strict=True
            )
        ]
        yield Box(int3(origin), int3(size))

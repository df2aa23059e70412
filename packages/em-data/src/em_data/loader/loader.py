"""Batches for torch, read by threads of this process and sent as stored to the device.

No worker processes: the readers release the GIL while they decode, and a fork after a read hangs
or aborts several zarr libraries.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from em_data.errors import NotFiniteError, VolumeFormatError
from em_data.formats.image_labels import ImageLabels
from em_data.formats.images import Images
from em_data.formats.remote import SCHEMES
from em_data.geometry import Box, Int3, shifted
from em_data.intensity import GreyRange, grey_range
from em_data.labels import Labels, check_types
from em_data.loader.batch import Batch, sent_ahead
from em_data.loader.buffers import Buffers
from em_data.loader.gather import cut
from em_data.loader.image_reader import ImageReader
from em_data.loader.threads import Later, readers
from em_data.sampler.block_shuffle import Block, BlockId, BlockSampler, Turn
from em_data.sampler.crop import Sample
from em_data.sampler.place_sampler import PlaceSampler
from em_data.sampler.randomness import Key
from em_data.volume import Volume, check_finite

__all__ = ["Batch", "Counts", "Loader"]

TYPES = ("uint8", "uint16", "int8", "int16", "float32")
ATTEMPTS = 16  # draws of a sample, or of a block, until one is not empty
MOST_ATTEMPTS = 1000  # until one holds nothing but numbers: others are never used
CROPS_AHEAD = 8
REMOTE_READERS = 64


@dataclass
class Counts:
    """What a loader has done so far."""

    samples: int = 0
    served_bytes: int = 0  # of raw voxels in batches
    decoded_bytes: int = 0  # of raw chunks
    redrawn: int = 0  # crops that were refused because they were empty
    empty: int = 0  # crops that were used though they are, after many attempts
    masked: int = 0  # crops that were refused because of voxels that are no numbers
    unreadable: int = 0  # crops of images that are damaged, for which others were drawn


class Crop(NamedTuple):
    """A sample in memory."""

    sample: Sample
    voxels: np.ndarray
    at: Int3  # where in `voxels` the crop begins
    labels: np.ndarray | None = None  # (C, Z, Y, X)
    labels_at: Int3 = (0, 0, 0)  # the raw voxel where `labels` begin


class Held(NamedTuple):
    """A block in memory."""

    block: Block
    voxels: np.ndarray
    labels: np.ndarray | None


class Loader:
    """Reads the samples of any range of steps ahead of their use.

    A global batch of step s holds samples s·G … s·G + G − 1 with G = `batch_size` · `world`; rank r
    takes its own `batch_size` of them. Nothing else is state: with a `BlockSampler` the blocks that
    step s needs are read again when a run is resumed there.

    Args:
        volumes: raw volumes, all of one type, or a collection of images (`open_images`), whose grey
            ranges are measured as they are read. Samples hold no voxels that are NaN or infinite: they
            are refused, or with `Volume.nan` "mask" drawn again.
        sampler: which says where the samples lie.
        batch_size: samples of this rank in a batch.
        samples_per_epoch: samples after which an epoch is counted.
        threads: that read; 0 reads in the thread that asks for batches. Volumes on servers get more,
            since waiting costs nothing.
        in_flight: crops or blocks that are read ahead; without it what the plan of the blocks says,
            or 8 crops, of volumes on servers 64.
        rank: of this process.
        world: number of ranks.
        labels: of each volume (`place_labels`, `match_labels`), with the same channels; then batches
            hold labels.
        empty_share: a crop is drawn again when more than this share of its voxels has one and the
            same value: 0, the largest of the type, or all that it has. None keeps every crop.
        device: batches are sent there ahead of their use; without it they stay where they were read.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        sampler: PlaceSampler | BlockSampler,
        *,
        batch_size: int,
        samples_per_epoch: int,
        threads: int = 2,
        in_flight: int | None = None,
        rank: int = 0,
        world: int = 1,
        labels: Sequence[Labels | None] | None = None,
        empty_share: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._images = ImageReader(volumes) if isinstance(volumes, Images) else None
        for volume in () if isinstance(volumes, Images) else volumes:
            volume.check_one_channel()
        self._dtype = dtype_of(volumes)
        if isinstance(sampler, BlockSampler) and sampler.plan.slots != batch_size * world:
            raise ValueError(
                f"the block plan is for {sampler.plan.slots} samples a batch, but {world} ranks take "
                f"{batch_size} each; plan for {batch_size * world}"
            )
        if empty_share is not None and not 0 < empty_share <= 1:
            raise ValueError(
                f"empty_share is {empty_share:g}; wanted 0 < share ≤ 1, for instance .9"
            )
        if self._images and isinstance(sampler, BlockSampler):
            raise ValueError(
                "images have no blocks to share; sample them with PlaceSampler(images.shapes, …)"
            )
        self.volumes = volumes if isinstance(volumes, Images) else list(volumes)
        self.sampler = sampler
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.rank = rank
        self.world = world
        self.labels = _checked(labels, self.volumes)
        self.empty_share = empty_share
        self.device = None if device is None else torch.device(device)
        self._blocks, self._batches = Buffers(), Buffers()
        self._pinned = torch.cuda.is_available()
        self.counts = Counts()
        self._counting = threading.Lock()
        # Waiting for a server costs nothing, so that many may do so.
        remote = not self._images and any(_on_server(volume) for volume in self.volumes)
        self.threads = max(threads, REMOTE_READERS) if remote and threads else threads
        if in_flight is None and isinstance(sampler, BlockSampler):
            in_flight = sampler.plan.in_flight
        self.in_flight = in_flight or (REMOTE_READERS if remote else CROPS_AHEAD)

    @cached_property
    def ranges(self) -> list[GreyRange]:
        """The grey values that each volume uses, measured when the first batch is asked for."""
        return [grey_range(volume) for volume in self.volumes]

    def keys(self, step: int) -> list[Key]:
        """Which samples this rank takes at `step`."""
        first = (step * self.world + self.rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        return [Key(*divmod(number, self.samples_per_epoch)) for number in numbers]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop` − 1, at most `in_flight` reads ahead."""
        batches = self._host_batches(start, stop)
        if self.device is None:
            return batches
        if self.device.type == "cuda":
            return sent_ahead(batches, self.device)
        return (batch.to(self.device) for batch in batches)

    def _host_batches(self, start: int, stop: int) -> Iterator[Batch]:
        with readers(self.threads) as pool:
            read = self._crops if isinstance(self.sampler, PlaceSampler) else self._crops_of_blocks
            for crops in read(pool, start, stop):
                yield self._collate(crops)

    def _crops(self, pool: Executor, start: int, stop: int) -> Iterator[list[Crop]]:
        """Each crop by itself, out of a volume in memory or read."""
        waiting: deque[list[Later[Crop]]] = deque()
        coming = iter(range(start, stop))
        ahead = -(-self.in_flight // self.batch_size)
        while True:
            for step in itertools.islice(coming, ahead + 1 - len(waiting)):
                waiting.append([pool.submit(self._read_crop, key) for key in self.keys(step)])
            if not waiting:
                return
            yield [later.result() for later in waiting.popleft()]

    def _read_crop(self, key: Key) -> Crop:
        assert isinstance(self.sampler, PlaceSampler)
        for attempt in itertools.count():
            sample = self.sampler(key, attempt)
            volume = self.volumes[sample.volume]
            if self._images:
                crop, decoded = self._images.read(sample, is_last=attempt == ATTEMPTS - 1)
                self._count(decoded_bytes=decoded, unreadable=crop is None)
                if crop is None:
                    continue
                voxels, at = crop, (0, 0, 0)
            elif isinstance(volume.array, np.ndarray):
                voxels, at = volume.array, sample.box.origin_vx
            else:
                voxels, at = volume.read(sample.box), (0, 0, 0)
                self._count(decoded_bytes=decoded_bytes(volume, sample.box))
            if not self._refused(sample, voxels, at, attempt):
                break
        box = self._label_box(sample)
        return Crop(sample, voxels, at, self._read_labels(sample.volume, box), box.origin_vx)

    def _crops_of_blocks(self, pool: Executor, start: int, stop: int) -> Iterator[list[Crop]]:
        """Crops out of blocks that are read once and kept while they are of use."""
        assert isinstance(self.sampler, BlockSampler)
        sampler = self.sampler
        held: dict[BlockId, Later[Held]] = {}
        unused: set[BlockId] = set()  # on their way, or there and not yet asked for
        coming: deque[list[tuple[Key, Turn]]] = deque()
        steps = iter(range(start, stop))
        while True:
            # First what the next step needs, then as far ahead as there is room.
            while not coming or len(unused) < self.in_flight:
                step = next(steps, None)
                if step is None:
                    break
                coming.append([(key, sampler.turn(key)) for key in self.keys(step)])
                for _, turn in coming[-1]:
                    if turn.block_id not in held:
                        held[turn.block_id] = pool.submit(self._read_block, turn.block_id)
                        unused.add(turn.block_id)
            if not coming:
                return
            crops = []
            for key, turn in coming.popleft():
                unused.discard(turn.block_id)
                crops.append(self._crop_of_block(key, turn, held[turn.block_id].result()))
                if turn.is_last:
                    del held[turn.block_id]
            yield crops

    def _read_block(self, block_id: BlockId) -> Held:
        assert isinstance(self.sampler, BlockSampler)
        for attempt in itertools.count():
            block = self.sampler.block(block_id, attempt)
            volume = self.volumes[block.volume]
            voxels = volume.read(block.box, self._blocks.take_rows(block.box.size_vx, volume.dtype))
            self._count(decoded_bytes=decoded_bytes(volume, block.box))
            # A block is kept as often as its crops are: one place of it, drawn with it, decides.
            at = shifted(Box(block.drawn, (1, 1, 1)), block.box.origin_vx, -1).origin_vx
            drawn = Sample(block.volume, Box(block.drawn, self.sampler.config.crop_vx), Key(0, 0))
            if self._is_masked(drawn, voxels, at, attempt):
                continue
            if attempt >= ATTEMPTS - 1 or not self._is_empty(voxels, at):
                break
        self.sampler.places(block)  # found here, not when the batch waits for it
        return Held(block, voxels, self._read_labels(block.volume, block.box))

    def _crop_of_block(self, key: Key, turn: Turn, held: Held) -> Crop:
        assert isinstance(self.sampler, BlockSampler)
        start = held.block.box.origin_vx
        for attempt in itertools.count():
            sample = self.sampler.sample(key, turn, held.block, attempt)
            if attempt == ATTEMPTS:  # the crop that the block was kept for holds only numbers
                sample = sample._replace(box=Box(held.block.drawn, sample.box.size_vx))
            z, y, x = sample.box.origin_vx
            at = (z - start[0], y - start[1], x - start[2])
            if not self._refused(sample, held.voxels, at, attempt):
                break
        return Crop(sample, held.voxels, at, held.labels, start)

    def _refused(self, sample: Sample, voxels: np.ndarray, at: Int3, attempt: int) -> bool:
        if self._is_masked(sample, voxels, at, attempt):
            return True
        if not self._is_empty(voxels, at):
            return False
        last = attempt >= ATTEMPTS - 1
        self._count(empty=last, redrawn=not last)
        return not last

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    def _is_masked(self, sample: Sample, voxels: np.ndarray, at: Int3, attempt: int) -> bool:
        """Whether a crop holds voxels that are no numbers, where such crops are drawn again."""
        volume = self.volumes[sample.volume]
        if volume.dtype.kind != "f":
            return False
        crop = voxels[Box(at, self.sampler.config.crop_vx).slices]
        if volume.nan != "mask":
            check_finite(crop, volume.source, sample.box.origin_vx)
        if np.isfinite(crop).all():
            return False
        if attempt >= MOST_ATTEMPTS:
            raise NotFiniteError(
                f"{volume.source}: none of {MOST_ATTEMPTS} crops of {crop.shape} voxels is free of NaN "
                "and infinite ones; take smaller crops, or leave this volume out"
            )
        self._count(masked=1)
        return True

    def _is_empty(self, voxels: np.ndarray, at: Int3) -> bool:
        if self.empty_share is None:
            return False
        crop = voxels[Box(at, self.sampler.config.crop_vx).slices]
        return same_share(crop) > self.empty_share

    def _read_labels(self, volume: int, box: Box) -> np.ndarray | None:
        labels = self.labels[volume] if self.labels is not None else None
        return None if labels is None else labels.read(box)

    def _label_box(self, sample: Sample) -> Box:
        return shifted(self.sampler.config.label_box, sample.box.origin_vx)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Tensor:
        """A tensor to be filled, from which a device can be fed."""
        if self._pinned:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            return torch.empty(shape, dtype=kind, pin_memory=True)
        return torch.from_numpy(self._batches.take(shape, dtype))

    def _collate(self, crops: list[Crop]) -> Batch:
        config = self.sampler.config
        dtype, (size_z, *size_yx) = self._dtype, config.crop_vx
        raw = self._empty((len(crops), len(config.planes), *size_yx), dtype)  # (B, Z, Y, X)
        gaps = len(config.planes) < size_z
        whole = np.empty((len(crops), *config.crop_vx), dtype) if gaps else raw.numpy()
        cut([(crop.voxels, crop.at) for crop in crops], config.crop_vx, whole, self.threads)
        if gaps:
            np.take(whole, config.planes, axis=1, out=raw.numpy())
        self._count(samples=len(crops), served_bytes=raw.nbytes)
        labels, valid = self._collate_labels(crops)
        number = np.array([crop.sample.volume for crop in crops])
        places_vx = np.array([crop.sample.box.origin_vx for crop in crops])
        grey, start_nm, unit_nm = self._figures
        scale, shift = torch.from_numpy(grey[:, number])
        start_nm, unit_nm = (one[number % len(one)] for one in (start_nm, unit_nm))
        return Batch(
            raw=raw,
            scale=scale,
            shift=shift,
            voxel_size_nm=[self.volumes[one].voxel_size_nm for one in number],
            origin_nm=torch.from_numpy(start_nm + places_vx * unit_nm),
            keys=[crop.sample.key for crop in crops],
            labels=labels,
            valid=valid,
        )

    @cached_property
    def _figures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each volume: scale and shift (2, V), origin and voxel size in nm, each (V, 3).

        Images have one origin and voxel size: (1, 3).
        """
        unknown = (math.nan, math.nan, math.nan)  # stays unknown
        if self._images:
            size_nm = np.array([self._images.images.voxel_size_nm or unknown], float)
            return self._images.grey, np.zeros((1, 3)), size_nm
        return (
            np.array([[grey.scale, grey.shift] for grey in self.ranges], np.float32).T,
            np.array([volume.origin_nm for volume in self.volumes], float),
            np.array([volume.voxel_size_nm or unknown for volume in self.volumes], float),
        )

    @cached_property
    def _label_kind(self) -> tuple[int, np.dtype[Any]]:
        """Channels of the labels, and a type that holds them all."""
        assert self.labels is not None
        if isinstance(self.labels, ImageLabels):
            return len(self.labels.names), self.labels.dtype
        given = [one for one in self.labels if one is not None]
        return len(given[0].layers), np.result_type(*(one.dtype for one in given))

    def _collate_labels(self, crops: list[Crop]) -> tuple[Tensor | None, Tensor | None]:
        if self.labels is None:
            return None, None
        channels, dtype = self._label_kind
        shape = (len(crops), channels, *self.sampler.config.label_box.size_vx)
        labels = self._empty(shape, dtype)
        valid = self._empty(shape, np.dtype(bool))
        labels.zero_()
        valid.zero_()
        pairs = zip(crops, labels.numpy(), valid.numpy(), strict=True)
        for crop, values, is_valid in pairs:
            placed, box = self.labels[crop.sample.volume], self._label_box(crop.sample)
            if placed is not None and crop.labels is not None:
                z, y, x = shifted(box, crop.labels_at, -1).slices
                values[:] = crop.labels[:, z, y, x]
                is_valid[:] = placed.valid(box)
        return labels, valid


def dtype_of(volumes: Sequence[Volume]) -> np.dtype[Any]:
    """The one type of all volumes; a collection of images has one."""
    if isinstance(volumes, Images):
        types = {volumes.dtype: volumes.folder}
    else:
        types = {volume.dtype: volume.source for volume in reversed(volumes)}
    if len(types) != 1 or not all(str(dtype) in TYPES for dtype in types):
        held = ", ".join(f"{source} holds {dtype}" for dtype, source in types.items())
        raise VolumeFormatError(
            f"{held}; wanted one type among {', '.join(TYPES)}: convert them, or train on those of "
            "one type"
        )
    return next(iter(types))


def same_share(crop: np.ndarray) -> float:
    """Share of the voxels of a crop that are 0, or the largest of the type, or all the same.

    >>> same_share(np.array([[[0, 0, 0, 9]]], np.uint8)), same_share(np.full((1, 1, 4), 7))
    (0.75, 1.0)
    """
    first = crop.flat[0]
    values = [first, 0] if crop.dtype.kind == "f" else [first, 0, np.iinfo(crop.dtype).max]
    return max(int(np.count_nonzero(crop == value)) for value in values) / crop.size


def decoded_bytes(volume: Volume, box: Box) -> int:
    """Bytes of the chunks that a box touches."""
    sides = zip(box.origin_vx, box.size_vx, volume.chunk_vx or (1, 1, 1), strict=True)
    chunks = [(-(-(o + s) // c) - o // c) * c for o, s, c in sides]
    return math.prod(chunks) * volume.dtype.itemsize


def _checked(
    labels: Sequence[Labels | None] | None, volumes: Sequence[Volume]
) -> Sequence[Labels | None] | None:
    if labels is None or (not isinstance(labels, ImageLabels) and not any(labels)):
        return None
    if len(labels) != len(volumes):
        raise ValueError(
            f"{len(labels)} labels for {len(volumes)} volumes; give one for each, or None"
        )
    if isinstance(labels, ImageLabels):
        return labels
    names = {one.names for one in labels if one is not None}
    if len(names) > 1:
        listed = " and ".join(", ".join(one) for one in sorted(names))
        raise ValueError(f"the volumes have different labels: {listed}; give all the same names")
    check_types(
        {
            f"the labels of volume {number} ({volume.source})": one.dtype
            for number, (volume, one) in enumerate(zip(volumes, labels, strict=True), 1)
            if one
        }
    )
    return list(labels)


def _on_server(volume: Volume) -> bool:
    return any(scheme in volume.source for scheme in SCHEMES)

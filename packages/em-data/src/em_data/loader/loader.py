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

from em_data.errors import VolumeFormatError
from em_data.formats.remote import SCHEMES
from em_data.geometry import Box, Int3, shifted
from em_data.intensity import GreyRange, grey_range
from em_data.labels import Labels, check_types
from em_data.loader.batch import Batch, sent_ahead
from em_data.loader.buffers import Buffers
from em_data.loader.gather import cut
from em_data.loader.threads import Later, readers
from em_data.sampler.block_shuffle import Block, BlockId, BlockSampler, Turn
from em_data.sampler.crop import Sample
from em_data.sampler.place_sampler import PlaceSampler
from em_data.sampler.randomness import Key
from em_data.volume import Volume

__all__ = ["Batch", "Counts", "Loader"]

TYPES = ("uint8", "uint16", "int8", "int16", "float32")
ATTEMPTS = 16  # draws of a sample, or of a block, until one is not empty
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
        volumes: raw volumes, all of one type.
        sampler: which says where the samples lie.
        batch_size: samples of this rank in a batch.
        samples_per_epoch: samples after which an epoch is counted.
        threads: that read; 0 reads in the thread that asks for batches. Volumes on servers get more,
            since waiting costs nothing.
        in_flight: crops or blocks that are read ahead; without it what the plan of the blocks says,
            or 8 crops, of volumes on servers 64.
        rank: of this process.
        world: number of ranks.
        labels: of each volume (`place_labels`), with the same channels; then batches hold labels.
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
        dtypes = {volume.dtype for volume in volumes}
        if len(dtypes) != 1 or str(next(iter(dtypes))) not in TYPES:
            raise VolumeFormatError(
                f"volumes hold {', '.join(sorted(map(str, dtypes)))}; wanted one type among "
                f"{', '.join(TYPES)}: convert them, or train on those of one type"
            )
        if isinstance(sampler, BlockSampler) and sampler.plan.slots != batch_size * world:
            raise ValueError(
                f"the block plan is for {sampler.plan.slots} samples a batch, but {world} ranks take "
                f"{batch_size} each; plan for {batch_size * world}"
            )
        if empty_share is not None and not 0 < empty_share <= 1:
            raise ValueError(
                f"empty_share is {empty_share:g}; wanted 0 < share ≤ 1, for instance .9"
            )
        self.volumes = list(volumes)
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
        remote = any(_on_server(volume) for volume in self.volumes)
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
        for attempt in range(ATTEMPTS):
            sample = self.sampler(key, attempt)
            volume = self.volumes[sample.volume]
            if isinstance(volume.array, np.ndarray):
                voxels, at = volume.array, sample.box.origin_vx
            else:
                voxels, at = volume.read(sample.box), (0, 0, 0)
                self._count(decoded_bytes=decoded_bytes(volume, sample.box))
            if not self._refused(voxels, at, attempt):
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
        for attempt in range(ATTEMPTS):
            block = self.sampler.block(block_id, attempt)
            volume = self.volumes[block.volume]
            voxels = volume.read(block.box, self._blocks.take_rows(block.box.size_vx, volume.dtype))
            self._count(decoded_bytes=decoded_bytes(volume, block.box))
            # A block is kept as often as its crops are: one place of it, drawn with it, decides.
            at = shifted(Box(block.drawn, (1, 1, 1)), block.box.origin_vx, -1).origin_vx
            if self.empty_share is None or not self._is_empty(voxels, at):
                break
        self.sampler.places(block)  # found here, not when the batch waits for it
        return Held(block, voxels, self._read_labels(block.volume, block.box))

    def _crop_of_block(self, key: Key, turn: Turn, held: Held) -> Crop:
        assert isinstance(self.sampler, BlockSampler)
        start = held.block.box.origin_vx
        for attempt in range(ATTEMPTS):
            sample = self.sampler.sample(key, turn, held.block, attempt)
            z, y, x = sample.box.origin_vx
            at = (z - start[0], y - start[1], x - start[2])
            if not self._refused(held.voxels, at, attempt):
                break
        return Crop(sample, held.voxels, at, held.labels, start)

    def _refused(self, voxels: np.ndarray, at: Int3, attempt: int) -> bool:
        if self.empty_share is None or not self._is_empty(voxels, at):
            return False
        last = attempt == ATTEMPTS - 1
        self._count(empty=last, redrawn=not last)
        return not last

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    def _is_empty(self, voxels: np.ndarray, at: Int3) -> bool:
        crop = voxels[Box(at, self.sampler.config.crop_vx).slices]
        return same_share(crop) > (self.empty_share or 1)

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
        dtype, (size_z, *size_yx) = self.volumes[0].dtype, config.crop_vx
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
        return Batch(
            raw=raw,
            scale=scale,
            shift=shift,
            voxel_size_nm=[self.volumes[crop.sample.volume].voxel_size_nm for crop in crops],
            origin_nm=torch.from_numpy(start_nm[number] + places_vx * unit_nm[number]),
            keys=[crop.sample.key for crop in crops],
            labels=labels,
            valid=valid,
        )

    @cached_property
    def _figures(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each volume: scale and shift (2, V), origin and voxel size in nm, each (V, 3)."""
        unknown = (math.nan, math.nan, math.nan)  # stays unknown
        return (
            np.array([[grey.scale, grey.shift] for grey in self.ranges], np.float32).T,
            np.array([volume.origin_nm for volume in self.volumes], float),
            np.array([volume.voxel_size_nm or unknown for volume in self.volumes], float),
        )

    def _collate_labels(self, crops: list[Crop]) -> tuple[Tensor | None, Tensor | None]:
        if self.labels is None:
            return None, None
        given = [one for one in self.labels if one is not None]
        shape = (len(crops), len(given[0].layers), *self.sampler.config.label_box.size_vx)
        labels = self._empty(shape, np.result_type(*(one.dtype for one in given)))
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
    labels: Sequence[Labels | None] | None, volumes: list[Volume]
) -> list[Labels | None] | None:
    if labels is None or not any(labels):
        return None
    if len(labels) != len(volumes):
        raise ValueError(
            f"{len(labels)} labels for {len(volumes)} volumes; give one for each, or None"
        )
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

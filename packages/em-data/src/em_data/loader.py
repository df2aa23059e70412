"""Batches for torch, read by threads of this process and sent as stored to the device.

No worker processes: the readers release the GIL while they decode, and a fork after a read hangs
or aborts several zarr libraries.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from em_data.blocks import BlockId, BlockSampler
from em_data.crops import cut
from em_data.errors import VolumeFormatError
from em_data.geometry import Float3, Int3
from em_data.intensity import GreyRange, grey_range
from em_data.sampler import Key, PlaceSampler, Sample
from em_data.volume import Volume

Source = tuple[np.ndarray, Int3]  # an array in memory, and where in it a crop begins
Crops = tuple[list[Sample], list[Source]]

TYPES = ("uint8", "uint16", "int8", "int16", "float32")


@dataclass(frozen=True)
class Batch:
    """Crops as stored, with all that is needed to make sense of them."""

    raw: Tensor  # (B, Z, Y, X)
    scale: Tensor  # (B,) float32: raw · scale + shift is in [0, 1], by the volume's own range
    shift: Tensor  # (B,)
    voxel_size_nm: list[Float3 | None]
    origin_nm: Tensor  # (B, 3) float64, centre of the first voxel
    keys: list[Key]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its voxels on `device`, still as stored."""
        raw, scale, shift = (
            tensor.to(device, non_blocking=True) for tensor in (self.raw, self.scale, self.shift)
        )
        return replace(self, raw=raw, scale=scale, shift=shift)

    def image(self) -> Tensor:
        """The voxels as float32 in [0, 1]: (B, Z, Y, X)."""
        scale, shift = (one[:, None, None, None] for one in (self.scale, self.shift))
        return (self.raw.to(torch.float32) * scale + shift).clamp(0, 1)


class Loader:
    """Reads the samples of any range of steps ahead of their use.

    A global batch of step s holds samples s·G … s·G + G − 1 with G = `batch_size` · `world`; rank r
    takes its own `batch_size` of them. Nothing else is state: with a `BlockSampler` the blocks that
    step s needs are read again when a run is resumed there.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        sampler: PlaceSampler | BlockSampler,
        *,
        batch_size: int,
        samples_per_epoch: int,
        threads: int = 2,
        in_flight: int = 8,
        rank: int = 0,
        world: int = 1,
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
        self.volumes = list(volumes)
        self.sampler = sampler
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.threads = threads
        self.in_flight = in_flight
        self.rank = rank
        self.world = world

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
        with ThreadPoolExecutor(self.threads, thread_name_prefix="em-data") as pool:
            read = self._crops if isinstance(self.sampler, PlaceSampler) else self._crops_of_blocks
            try:
                for samples, sources in read(pool, start, stop):
                    yield self._collate(samples, sources)
            finally:  # the consumer left early, or a read failed
                pool.shutdown(wait=True, cancel_futures=True)

    def _crops(self, pool: ThreadPoolExecutor, start: int, stop: int) -> Iterator[Crops]:
        """Each crop by itself, out of a volume in memory or read."""
        waiting: deque[tuple[list[Sample], list[Future[Source]]]] = deque()
        coming = iter(range(start, stop))
        ahead = -(-self.in_flight // self.batch_size)
        while True:
            for step in itertools.islice(coming, ahead + 1 - len(waiting)):
                samples = [self.sampler(key) for key in self.keys(step)]
                waiting.append((samples, [pool.submit(self._source, s) for s in samples]))
            if not waiting:
                return
            samples, futures = waiting.popleft()
            yield samples, [future.result() for future in futures]

    def _source(self, sample: Sample) -> Source:
        volume = self.volumes[sample.volume]
        if isinstance(volume.array, np.ndarray):
            return volume.array, sample.box.origin_vx
        return volume.read(sample.box), (0, 0, 0)

    def _crops_of_blocks(self, pool: ThreadPoolExecutor, start: int, stop: int) -> Iterator[Crops]:
        """Crops out of blocks that are read once and kept while they are of use."""
        assert isinstance(self.sampler, BlockSampler)
        sampler = self.sampler
        held: dict[BlockId, Future[np.ndarray]] = {}
        unused: set[BlockId] = set()  # on their way, or there and not yet asked for
        scheduled = start
        for step in range(start, stop):
            # First what this step needs, then as far ahead as there is room.
            while scheduled < stop and (scheduled <= step or len(unused) < self.in_flight):
                for block_id in map(sampler.block_id, self.keys(scheduled)):
                    if block_id not in held:
                        block = sampler.block(block_id)
                        held[block_id] = pool.submit(self.volumes[block.volume].read, block.box)
                        unused.add(block_id)
                scheduled += 1
            samples, sources = [], []
            for key in self.keys(step):
                block_id = sampler.block_id(key)
                unused.discard(block_id)
                sample, start_vx = sampler(key), sampler.block(block_id).box.origin_vx
                z, y, x = (o - s for o, s in zip(sample.box.origin_vx, start_vx, strict=True))
                samples.append(sample)
                sources.append((held[block_id].result(), (z, y, x)))
                if sampler.is_last(key):
                    del held[block_id]
            yield samples, sources

    def _collate(self, samples: list[Sample], sources: list[Source]) -> Batch:
        config = self.sampler.config
        raw = cut(sources, config.crop_vx, threads=self.threads)  # (B, Z, Y, X)
        if len(config.planes) < config.crop_vx[0]:
            raw = raw[:, config.planes]
        sizes, origins = [], []
        for sample in samples:
            volume = self.volumes[sample.volume]
            size = volume.voxel_size_nm
            sizes.append(size)
            unit = size or (math.nan, math.nan, math.nan)  # unknown stays unknown
            place_vx = sample.box.origin_vx
            origins.append(
                [o + p * u for o, p, u in zip(volume.origin_nm, place_vx, unit, strict=True)]
            )
        voxels = torch.from_numpy(raw)
        if torch.cuda.is_available():
            voxels = voxels.pin_memory()
        return Batch(
            raw=voxels,
            scale=torch.tensor([self.ranges[s.volume].scale for s in samples]),
            shift=torch.tensor([self.ranges[s.volume].shift for s in samples]),
            voxel_size_nm=sizes,
            origin_nm=torch.tensor(origins, dtype=torch.float64),
            keys=[sample.key for sample in samples],
        )

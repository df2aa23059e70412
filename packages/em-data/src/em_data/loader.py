"""Batches for torch, read by threads of this process and sent as stored to the device.

No worker processes: the readers release the GIL while they decode, and a fork after a read hangs
or aborts several zarr libraries.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from em_data.errors import VolumeFormatError
from em_data.geometry import Float3
from em_data.sampler import Key, Sample, StackSampler
from em_data.volume import Volume

# Stored type -> factor to [0, 1].
SCALES = {np.dtype(np.uint8): 1 / 255, np.dtype(np.uint16): 1 / 65535}


@dataclass(frozen=True)
class Batch:
    """Slices as stored, with all that is needed to make sense of them."""

    raw: Tensor  # (B, Z, Y, X) uint8 or uint16
    scale: float  # raw · scale + shift is in [0, 1]
    shift: float
    voxel_size_nm: list[Float3 | None]
    origin_nm: Tensor  # (B, 3) float64, centre of the first voxel
    keys: list[Key]

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its voxels on `device`, still as stored."""
        return replace(self, raw=self.raw.to(device, non_blocking=True))

    def image(self) -> Tensor:
        """The voxels as float32 in [0, 1]: (B, Z, Y, X)."""
        return self.raw.to(torch.float32) * self.scale + self.shift


class Loader:
    """Reads the samples of any range of steps ahead of their use.

    A global batch of step s holds samples s·G … s·G + G − 1 with G = `batch_size` · `world`; rank r
    takes its own `batch_size` of them. Nothing else is state.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        sampler: StackSampler,
        *,
        batch_size: int,
        samples_per_epoch: int,
        threads: int = 2,
        ahead: int = 3,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        dtypes = {volume.dtype for volume in volumes}
        if len(dtypes) != 1 or next(iter(dtypes)) not in SCALES:
            raise VolumeFormatError(
                f"volumes hold {', '.join(sorted(map(str, dtypes)))}; wanted all uint8 or all uint16: "
                "convert them, or train on one kind"
            )
        self.volumes = list(volumes)
        self.sampler = sampler
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.threads = threads
        self.ahead = ahead
        self.rank = rank
        self.world = world

    def keys(self, step: int) -> list[Key]:
        """Which samples this rank takes at `step`."""
        first = (step * self.world + self.rank) * self.batch_size
        numbers = range(first, first + self.batch_size)
        return [Key(*divmod(number, self.samples_per_epoch)) for number in numbers]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop` − 1, at most `ahead` of them read in advance."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="em-data") as pool:
            waiting: deque[list[Future[np.ndarray]]] = deque()
            samples: deque[list[Sample]] = deque()
            try:
                for step in range(start, stop + self.ahead):
                    if step < stop:
                        samples.append([self.sampler(key) for key in self.keys(step)])
                        waiting.append([pool.submit(self._read, one) for one in samples[-1]])
                    if step >= start + self.ahead:
                        crops = [future.result() for future in waiting.popleft()]
                        yield self._collate(samples.popleft(), crops)
            finally:  # the consumer left early, or a read failed
                pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, sample: Sample) -> np.ndarray:
        crop = self.volumes[sample.volume].read(sample.box)
        planes = [z - sample.slices_z[0] for z in sample.slices_z]
        return crop[planes]

    def _collate(self, samples: list[Sample], crops: list[np.ndarray]) -> Batch:
        sizes, origins = [], []
        for sample in samples:
            volume = self.volumes[sample.volume]
            size = volume.voxel_size_nm
            sizes.append(size)
            place = (sample.slices_z[0], *sample.window_yx)
            unit = size or (math.nan, math.nan, math.nan)  # unknown stays unknown
            origins.append(
                [o + p * u for o, p, u in zip(volume.origin_nm, place, unit, strict=True)]
            )
        raw = torch.from_numpy(np.stack(crops))
        if torch.cuda.is_available():
            raw = raw.pin_memory()
        return Batch(
            raw=raw,
            scale=SCALES[self.volumes[0].dtype],
            shift=0.0,
            voxel_size_nm=sizes,
            origin_nm=torch.tensor(origins, dtype=torch.float64),
            keys=[sample.key for sample in samples],
        )

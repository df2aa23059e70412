"""Coarser and finer views of a volume: voxels averaged in blocks, or interpolated, as they are read.

For volumes that were stored without a pyramid, or whose levels are too fine or too coarse: nothing
is written, and what reads the view does not know that it is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, int3
from em_data.volume import Volume


@dataclass(frozen=True)
class Binned:
    """A volume's voxels, averaged in blocks of `step` voxels; a remainder at the end is left out."""

    volume: Volume
    step: Int3

    @property
    def shape(self) -> Int3:
        """(z, y, x)"""
        return int3([n // k for n, k in zip(self.volume.shape, self.step, strict=True)])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored: means of integers are rounded, a bool is true where half of its voxels are."""
        return self.volume.dtype

    @property
    def chunks(self) -> Int3 | None:
        """What is decoded together."""
        chunk = self.volume.chunk_vx
        return chunk and int3([max(1, c // k) for c, k in zip(chunk, self.step, strict=True)])

    @property
    def compression(self) -> str | None:
        """As stored."""
        return self.volume.compression

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        starts, sizes = [], []
        for part, n in zip(index, self.shape, strict=True):
            start, stop, _ = part.indices(n)
            starts.append(start)
            sizes.append(stop - start)
        fine = self.volume.read(
            Box(
                int3([o * k for o, k in zip(starts, self.step, strict=True)]),
                int3([s * k for s, k in zip(sizes, self.step, strict=True)]),
            )
        )
        (z, y, x), (kz, ky, kx) = sizes, self.step
        total = fine.reshape(z, kz, y, ky, x, kx).sum((1, 3, 5), dtype=sum_dtype(self.dtype))
        return as_stored(total / math.prod(self.step), self.dtype)


def binned(volume: Volume, step: Sequence[int]) -> Volume:
    """The volume at a coarser resolution, `step` voxels (z, y, x) averaged to one.

    >>> from em_data import open_volume
    >>> fine = open_volume(np.arange(16, dtype="uint8").reshape(1, 4, 4), voxel_size_nm=(40, 4, 4))
    >>> coarse = binned(fine, (1, 2, 2))
    >>> coarse.voxel_size_nm, coarse.origin_nm, coarse[:, :, :].tolist()
    ((40.0, 8.0, 8.0), (0.0, 2.0, 2.0), [[[2, 4], [10, 12]]])
    """
    step = int3(step)
    if min(step) < 1 or any(k > n for k, n in zip(step, volume.shape, strict=True)):
        raise BoxError(
            f"{step} voxels cannot be averaged to one in a volume of {volume.shape}; wanted at "
            "least 1 and at most the volume along every axis"
        )
    if step == (1, 1, 1):
        return volume
    size, origin = volume.voxel_size_nm, volume.origin_nm
    if size is not None:
        z, y, x = (o + (k - 1) / 2 * s for o, k, s in zip(origin, step, size, strict=True))
        origin = (z, y, x)
        z, y, x = (k * s for k, s in zip(step, size, strict=True))
        size = (z, y, x)
    return replace(
        volume,
        array=Binned(volume, step),
        voxel_size_nm=size,
        origin_nm=origin,
        levels=(),
        level=0,
        label_names=(),
        open_label=None,
    )


@dataclass(frozen=True)
class Interpolated:
    """A volume with `times` voxels for each of its own along an axis, linear between their centres."""

    volume: Volume
    times: Int3

    @property
    def shape(self) -> Int3:
        """(z, y, x)"""
        return int3([n * k for n, k in zip(self.volume.shape, self.times, strict=True)])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored: integers are rounded."""
        return self.volume.dtype

    @property
    def chunks(self) -> Int3 | None:
        """What is decoded together."""
        chunk = self.volume.chunk_vx
        return chunk and int3([c * k for c, k in zip(chunk, self.times, strict=True)])

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        origin, size, places = [], [], []
        for part, n, k in zip(index, self.volume.shape, self.times, strict=True):
            start, stop, _ = part.indices(n * k)
            # The centre of a fine voxel among those of the coarse ones, none beyond the last.
            place = ((np.arange(start, stop) + 0.5) / k - 0.5).clip(0, n - 1)
            first, end = int(place[0]), min(n, int(place[-1]) + 2)
            origin.append(first)
            size.append(end - first)
            places.append(place - first)
        found = self.volume.read(Box(int3(origin), int3(size))).astype(sum_dtype(self.dtype))
        for axis, place in enumerate(places):
            low = place.astype(int)
            high = np.minimum(low + 1, found.shape[axis] - 1)
            share = (place - low).astype(found.dtype)
            share = share.reshape([-1 if a == axis else 1 for a in range(3)])
            found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
        return as_stored(found, self.dtype)


def interpolated(volume: Volume, times: Sequence[int]) -> Volume:
    """The volume at a finer resolution, `times` voxels (z, y, x) for each of its own.

    >>> from em_data import open_volume
    >>> coarse = open_volume(np.array([[[2, 4], [10, 12]]], "uint8"), voxel_size_nm=(40, 8, 8))
    >>> fine = interpolated(coarse, (1, 1, 2))
    >>> fine.voxel_size_nm, fine.origin_nm, fine[:, :1, :].tolist()
    ((40.0, 8.0, 4.0), (0.0, 0.0, -2.0), [[[2, 2, 4, 4]]])
    """
    times = int3(times)
    if min(times) < 1:
        raise BoxError(f"{times} voxels for one cannot be; wanted at least 1 along every axis")
    size, origin = volume.voxel_size_nm, volume.origin_nm
    if size is not None:
        z, y, x = (s / k for s, k in zip(size, times, strict=True))
        fine = (z, y, x)
        z, y, x = (
            o - (s - f) / 2 for o, s, f in zip(origin, size, fine, strict=True)
        )  # the first fine voxel lies at the edge of the first coarse one
        size, origin = fine, (z, y, x)
    return replace(
        volume,
        array=Interpolated(volume, times),
        voxel_size_nm=size,
        origin_nm=origin,
        levels=(),
        level=0,
        label_names=(),
        open_label=None,
    )


def sum_dtype(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The type in which voxels are added up: large integers do not fit the digits of float32."""
    return np.float64 if dtype.itemsize > 2 and dtype != np.float32 else np.float32


def as_stored(mean: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Means in the type of the voxels: integers are rounded, a bool is true from one half on."""
    if dtype.kind == "b":
        return mean >= 0.5
    return (np.rint(mean, out=mean) if dtype.kind in "iu" else mean).astype(dtype)

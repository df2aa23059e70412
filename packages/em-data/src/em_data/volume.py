"""`Volume`: a lazy 3D array that knows its physical size.

A volume holds no voxels. It reads a box when asked, so it costs nothing to open a terabyte, and it
travels to threads and processes by pickling its address, not its contents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from em_data.errors import VolumeFormatError, VolumeReadError
from em_data.geometry import Box, Float3, Int3, check_inside, int3


class Array(Protocol):
    """What a format must offer: numpy-like shape, dtype and box reading."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)"""

    @property
    def dtype(self) -> Any:
        """Type of the voxels."""

    def __getitem__(self, index: Any, /) -> Any:
        """The voxels of a tuple of slices."""


@dataclass(frozen=True)
class Level:
    """One resolution of a multiscale volume."""

    path: str
    shape: Int3
    voxel_size_nm: Float3 | None


@dataclass(frozen=True)
class Volume:
    """A lazy volume: `volume[z0:z1, y0:y1, x0:x1]` or `volume.read(box)` gives numpy voxels."""

    array: Array = field(repr=False)
    source: str
    format: str
    voxel_size_nm: Float3 | None = None  # None: the file does not say and nobody told
    origin_nm: Float3 = (0.0, 0.0, 0.0)  # centre of voxel (0, 0, 0)
    levels: tuple[Level, ...] = ()
    level: int = 0
    label_names: tuple[str, ...] = ()
    open_label: Callable[[str], Volume] | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> Int3:
        """Voxels along (z, y, x)."""
        return int3(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as stored."""
        return np.dtype(self.array.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels when decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, box: Box) -> np.ndarray:
        """Voxels of `box`, as stored. A box that leaves the volume is refused, never padded."""
        check_inside(box, self.shape)
        try:
            return np.asarray(self.array[box.slices])
        except (OSError, RuntimeError, ValueError) as error:
            raise VolumeReadError(
                f"{self.source}: voxels {box.size_vx} at {box.origin_vx} cannot be decoded "
                f"({type(error).__name__}: {error}); a chunk there is damaged or truncated, "
                "restore it or leave that region out"
            ) from error

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        if not (isinstance(index, tuple) and len(index) == 3):
            raise TypeError(f"a volume takes three slices [z, y, x], got {index!r}")
        bounds = []
        for part, n in zip(index, self.shape, strict=True):
            if not isinstance(part, slice) or part.step not in (None, 1):
                raise TypeError(f"a volume takes slices without a step, got {part!r}")
            start, stop, _ = part.indices(n)
            bounds.append((start, stop))
        (z0, z1), (y0, y1), (x0, x1) = bounds
        return self.read(Box((z0, y0, x0), (z1 - z0, y1 - y0, x1 - x0)))

    def held_in_memory(self) -> Volume:
        """The same volume with all of its voxels read once, for volumes that fit."""
        return replace(self, array=self.read(Box((0, 0, 0), self.shape)))

    def labels(self, name: str) -> Volume:
        """The label image `name` that is stored beside the raw voxels (OME-Zarr `labels/`)."""
        if name not in self.label_names or self.open_label is None:
            known = ", ".join(self.label_names) or "none"
            raise VolumeFormatError(f"{self.source} has no labels {name!r}; it has: {known}")
        return self.open_label(name)

"""`Volume`: a lazy 3D array that knows its physical size.

A volume holds no voxels. It reads a box when asked, so it costs nothing to open a terabyte, and it
travels to threads and processes by pickling its address, not its contents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from em_data.errors import BoxError, ForkError, NotFiniteError, VolumeFormatError, VolumeReadError
from em_data.geometry import Box, Float3, Int3, check_inside, int3

# What is done about voxels that are NaN or infinite: given as they are, refused when they are read,
# or given and left out of every sample of a `Loader`.
Nan = Literal["keep", "refuse", "mask"]
MOST = (
    2**62
)  # voxels: what can still be counted in 64 bits, thousands of the largest volumes there are
LISTED = 8  # channels named in a line at most: embeddings have hundreds


class Array(Protocol):
    """What a format must offer: numpy-like shape, dtype and box reading.

    It may offer `chunks`, `shards` and `compression` besides, named as by zarr and h5py, `channels`,
    whose names say that a box has a first axis for them where there are several, and
    `read_into(box, out)`, which decodes a box into memory that is there.
    """

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
    """A lazy volume: `volume[z0:z1, y0:y1, x0:x1]` or `volume.read(box)` gives numpy voxels.

    One with several channels is read by `volume.read_channels(box)`.
    """

    array: Array = field(repr=False)
    source: str
    format: str
    voxel_size_nm: Float3 | None = None  # None: the file does not say and nobody told
    origin_nm: Float3 = (0.0, 0.0, 0.0)  # centre of voxel (0, 0, 0)
    levels: tuple[Level, ...] = ()
    level: int = 0
    nan: Nan = "keep"
    channels: tuple[str, ...] = ()  # names, where the file has several or names the only one
    label_names: tuple[str, ...] = ()
    open_label: Callable[[str], Volume] | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> Int3:
        """Voxels along (z, y, x)."""
        return int3(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels, in the byte order of this machine."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels when decoded."""
        return math.prod(self.shape) * max(1, len(self.channels)) * self.dtype.itemsize

    @property
    def chunk_vx(self) -> Int3 | None:
        """Voxels that are decoded together, along (z, y, x); None: any voxel can be read alone."""
        return getattr(self.array, "chunks", None)

    @property
    def shard_vx(self) -> Int3 | None:
        """Voxels that lie in one file, along (z, y, x), where that is more than a chunk."""
        return getattr(self.array, "shards", None)

    @property
    def compression(self) -> str | None:
        """Names of the codecs; None where the voxels are stored as they are."""
        return getattr(self.array, "compression", None)

    def __str__(self) -> str:
        """What was opened, and which of its levels."""
        size = "voxel size unknown"
        if self.voxel_size_nm:
            size = " × ".join(f"{s:g}" for s in self.voxel_size_nm) + " nm"
        shape = " × ".join(map(str, self.shape))
        text = f"{self.source} ({self.format}): {shape} {self.dtype}, {size}"
        if len(self.levels) > 1:
            name = self.levels[self.level].path
            text += f", level {self.level} ({name}) of 0 … {len(self.levels) - 1}"
        if len(self.channels) > 1:
            text += f", {len(self.channels)} channels: {listed(self.channels)}"
        return text

    def check_one_channel(self) -> None:
        """Refuse several channels where one is wanted."""
        if len(self.channels) > 1:
            raise VolumeFormatError(
                f"{self.source} has {len(self.channels)} channels ({listed(self.channels)}); choose "
                f"one with channel=0 … {len(self.channels) - 1} or its name, in the address after '?'"
            )

    def read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        """Voxels of `box`, as stored. A box that leaves the volume is refused, never padded.

        Formats that can decode into `out`, of the box's shape and this type, do so and give it back.
        """
        self.check_one_channel()
        return self._read(box, out)

    def read_channels(self, box: Box) -> np.ndarray:
        """Voxels of `box` with all channels: (C, z, y, x), of a volume without channels C = 1."""
        voxels = self._read(box)
        return voxels if voxels.ndim == 4 else voxels[None]

    def _read(self, box: Box, out: np.ndarray | None = None) -> np.ndarray:
        check_inside(box, self.shape)
        read_into = getattr(self.array, "read_into", None) if out is not None else None
        try:
            voxels = np.asarray(read_into(box, out) if read_into else self.array[box.slices])
        except (ForkError, NotFiniteError, MemoryError):
            raise
        except Exception as error:  # every decoder has errors of its own
            where = f"{self.source}: voxels {box.size_vx} at {box.origin_vx} cannot be read"
            if isinstance(error, VolumeReadError):
                raise VolumeReadError(f"{where}: {error}") from error
            raise VolumeReadError(
                f"{where} ({type(error).__name__}: {error}); the file is damaged or truncated "
                "there, restore it or leave that region out"
            ) from error
        voxels = voxels.astype(self.dtype, copy=False)
        if self.nan == "refuse":
            check_finite(voxels, self.source, box.origin_vx)
        return voxels

    def box_nm(self, origin_nm: Sequence[float], size_nm: Sequence[float]) -> Box:
        """The box of voxels nearest to a physical box.

        `origin_nm` is the centre of its first voxel, in the same frame as the origin of the volume.
        The number of voxels depends on the size alone, so boxes of one size have one shape.

        >>> volume = Volume(np.zeros((9, 9, 9)), "a", "numpy", (40, 4, 4), (80, 0, 0))
        >>> volume.box_nm((160, 9, 4), (80, 16, 16))
        Box(origin_vx=(2, 2, 1), size_vx=(2, 4, 4))
        """
        if self.voxel_size_nm is None:
            raise VolumeFormatError(
                f"{self.source} does not say its voxel size, so nothing in it can be found in nm; "
                "say it in the address, ?voxel_nm=Z,Y,X, or give voxel_size_nm when opening it"
            )
        if min(size_nm) <= 0:
            raise BoxError(f"a box of {tuple(size_nm)} nm is empty; every side must be above 0")
        places = zip(origin_nm, self.origin_nm, self.voxel_size_nm, strict=True)
        origin = [math.floor((o - o0) / s + 0.5) for o, o0, s in places]
        size = [
            max(1, math.floor(n / s + 0.5))
            for n, s in zip(size_nm, self.voxel_size_nm, strict=True)
        ]
        return Box(int3(origin), int3(size))

    def read_nm(self, origin_nm: Sequence[float], size_nm: Sequence[float]) -> np.ndarray:
        """Voxels of the box nearest to a physical one: `volume.read(volume.box_nm(…))`."""
        return self.read(self.box_nm(origin_nm, size_nm))

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


def check_finite(voxels: np.ndarray, source: str, origin_vx: Int3) -> None:
    """Refuse voxels of `source`, the first of them at `origin_vx`, some of which are no numbers."""
    if voxels.dtype.kind != "f" or (finite := np.isfinite(voxels)).all():
        return
    first = np.unravel_index(int(finite.argmin()), voxels.shape)
    place = tuple(int(o + i) for o, i in zip(origin_vx, first, strict=True))
    raise NotFiniteError(
        f"{source}: {finite.size - np.count_nonzero(finite):,} of {finite.size:,} voxels that were read "
        f"are NaN or infinite, the first at {place}; mend them in the file (numpy.nan_to_num), or train "
        "with --set data.nan=mask, which leaves them out"
    )


class Collection(Sequence[Volume]):
    """Many volumes that are made when they are asked for; their shapes and type are known before."""

    shapes: np.ndarray  # (V, 3), along (z, y, x)
    dtype: np.dtype[Any]  # one type that holds all of them


def as_volume(array: Array, source: str, format: str) -> Volume:
    """A volume of an array along (z, y, x), refused when it holds no voxels that are numbers."""
    dtype = np.dtype(array.dtype)
    if len(array.shape) != 3 or dtype.kind not in "buif":
        raise VolumeFormatError(
            f"{source} holds {dtype} of shape {tuple(array.shape)}; "
            "wanted real numbers along three axes (z, y, x)"
        )
    if min(array.shape) < 1 or math.prod(map(int, array.shape)) > MOST:
        raise VolumeFormatError(
            f"{source} is empty or damaged: its shape is given as {tuple(array.shape)}; wanted sides "
            "of at least 1, and no more voxels than a disk can hold: write it again"
        )
    channels = tuple(getattr(array, "channels", ()))
    return Volume(array=array, source=source, format=format, channels=channels)


def listed(names: Sequence[str]) -> str:
    """Names in a line, of many the first and the last.

    >>> listed([f"feature {i}" for i in range(32)])
    'feature 0, feature 1, feature 2, … feature 31'
    """
    if len(names) > LISTED:
        names = [*names[:3], f"… {names[-1]}"]
    return ", ".join(names)

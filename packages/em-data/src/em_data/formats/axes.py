"""From what a file has (channels, time points, levels, units) to one volume along (z, y, x).

Axes are read from metadata and never guessed: an axis that is not spatial is dropped when it has
one element, chosen by `channel=` or `time=`, or refused with a list of what there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from em_data.errors import VolumeFormatError
from em_data.geometry import NANOMETRES, Float3, Int3, float3
from em_data.volume import Array, Level

# How units are written outside of OME-NGFF: by ImageJ, OME-XML, N5 and tensorstore.
UNITS_NM: dict[str, float] = NANOMETRES | {
    **{"Å": 0.1, "A": 0.1, "pm": 1e-3, "nm": 1.0, "mm": 1e6, "cm": 1e7, "m": 1e9},
    **{"um": 1e3, "µm": 1e3, "μm": 1e3, "\\u00B5m": 1e3, "micron": 1e3, "microns": 1e3},
}


class Wanted(NamedTuple):
    """What the caller of `open_volume` asks for."""

    at_nm: Float3 | None = None
    channel: int | str | None = None
    time: int | None = None


@dataclass(frozen=True)
class Picked:
    """The spatial axes of an array whose other axes stand at one index each."""

    array: Array
    index: tuple[int | None, ...]  # None: spatial

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)"""
        return self._spatial(self.array.shape)

    @property
    def dtype(self) -> Any:
        """Type of the voxels."""
        return self.array.dtype

    @property
    def chunks(self) -> Int3 | None:
        """Voxels of a chunk along (z, y, x)."""
        chunk = getattr(self.array, "chunks", None)
        return chunk and self._spatial(chunk)

    @property
    def shards(self) -> Int3 | None:
        """Voxels of a shard along (z, y, x)."""
        shard = getattr(self.array, "shards", None)
        return shard and self._spatial(shard)

    @property
    def compression(self) -> str | None:
        """Names of the codecs."""
        return getattr(self.array, "compression", None)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Any:
        parts = iter(index)
        return self.array[tuple(next(parts) if i is None else i for i in self.index)]

    def _spatial(self, values: Sequence[int]) -> Any:
        return tuple(v for v, i in zip(values, self.index, strict=True) if i is None)


def check_axes(source: str, axes: Sequence[str]) -> None:
    """Refuse axes of which the spatial ones are not z, y, x."""
    if [name for name in axes if name in "zyx"] != ["z", "y", "x"]:
        raise VolumeFormatError(
            f"{source}: axes are {list(axes) or 'missing'}; wanted z, y, x in this order, "
            "with channels (c) and time (t) besides at most"
        )


def check_choice(source: str, axes: Sequence[str], wanted: Wanted) -> None:
    """Refuse the choice of a channel or time point where there is no such axis."""
    for name, choice in (("c", wanted.channel), ("t", wanted.time)):
        if name not in axes and choice not in (None, 0):
            word = "channel" if name == "c" else "time"
            raise VolumeFormatError(
                f"{source} has no {word} axis, but {word}={choice!r} was asked for; leave it out"
            )


def pick_axes(
    array: Array, axes: Sequence[str], source: str, wanted: Wanted, channels: Sequence[str] = ()
) -> Array:
    """The (z, y, x) part of `array`, whose axes have one-letter or OME-NGFF names.

    >>> import numpy as np
    >>> pick_axes(np.zeros((2, 1, 4, 5, 6)), "ctzyx", "a.tif", Wanted(channel=1)).shape
    (4, 5, 6)
    >>> pick_axes(np.zeros((2, 4, 5, 6)), "czyx", "a.tif", Wanted())
    Traceback (most recent call last):
    ...
    em_data.errors.VolumeFormatError: a.tif has 2 channels; choose one with channel=0 … 1
    """
    names = [{"channel": "c", "time": "t"}.get(name, name) for name in axes]
    if len(names) != len(array.shape):
        raise VolumeFormatError(
            f"{source}: the metadata names {len(names)} axes {list(axes)}, but the array has the "
            f"shape {tuple(array.shape)}; repair the metadata"
        )
    check_axes(source, axes)
    index: list[int | None] = []
    for name, n in zip(names, array.shape, strict=True):
        if name in "zyx":
            index.append(None)
        elif name == "c":
            index.append(_channel(source, n, wanted.channel, channels))
        elif name == "t":
            index.append(_one(source, "time points", "time", n, wanted.time))
        elif n == 1:
            index.append(0)
        else:
            raise VolumeFormatError(
                f"{source} has an axis {name!r} of {n}; wanted z, y, x, channels (c) and time (t) "
                "only: write one index of it as a volume of its own"
            )
    check_choice(source, names, wanted)
    return Picked(array, tuple(index)) if len(index) > 3 else array


def _channel(source: str, n: int, choice: int | str | None, channels: Sequence[str]) -> int:
    if isinstance(choice, str):
        if choice not in channels:
            known = ", ".join(map(repr, channels)) or "none by name"
            raise VolumeFormatError(
                f"{source} has no channel {choice!r}; it has {n} channels: {known}"
            )
        return channels.index(choice)
    what = f"channels ({', '.join(channels)})" if channels else "channels"
    return _one(source, what, "channel", n, choice)


def _one(source: str, what: str, keyword: str, n: int, choice: int | None) -> int:
    if choice is None and n == 1:
        return 0
    if choice is None or not 0 <= choice < n:
        asked = "" if choice is None else f", not {keyword}={choice}"
        raise VolumeFormatError(
            f"{source} has {n} {what}; choose one with {keyword}=0 … {n - 1}{asked}"
        )
    return choice


def units_nm(source: str, units: Sequence[str | None]) -> list[float] | None:
    """Each unit in nanometres; None when one is not stated, for then a number says nothing."""
    for unit in units:
        if unit is not None and unit not in UNITS_NM:
            raise VolumeFormatError(
                f"{source}: unknown unit {unit!r}; wanted one of {', '.join(NANOMETRES)}"
            )
    return None if None in units else [UNITS_NM[str(unit)] for unit in units]


def voxel_size(source: str, size_nm: Sequence[float]) -> Float3:
    """A voxel size that was read from a file, refused when it is not positive and finite."""
    if not all(math.isfinite(s) and s > 0 for s in size_nm) or len(size_nm) != 3:
        raise VolumeFormatError(
            f"{source}: its metadata gives the voxel size {tuple(size_nm)} nm; wanted three numbers "
            "above 0: repair the metadata"
        )
    # Units multiply out to numbers such as 4.000000000000001.
    return float3([float(f"{s:.12g}") for s in size_nm])


def nearest_level(source: str, levels: Sequence[Level], at_nm: Float3 | None) -> int:
    """The level whose voxels are nearest to `at_nm` in log size; the finest one without it."""
    if at_nm is None:
        return 0
    wanted = voxel_size("at_nm", at_nm)
    distances = []
    for level in levels:
        if level.voxel_size_nm is None:
            raise VolumeFormatError(
                f"{source}: no unit is stated for its voxels, so no level can be chosen at {at_nm} "
                "nm; open it without at_nm and give voxel_size_nm"
            )
        ratios = zip(level.voxel_size_nm, wanted, strict=True)
        distances.append(sum(math.log(size / nm) ** 2 for size, nm in ratios))
    return distances.index(min(distances))

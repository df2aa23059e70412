"""From what a file has (channels, time points, levels, units) to one volume along (z, y, x).

Axes are read from metadata and never guessed: an axis that is not spatial is dropped when it has
one element or is chosen from by `channel=` or `time=`. Several channels stay together unless one is
chosen; several time points are refused with a list of what there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.geometry import NANOMETRES, Float3, Int3, float3
from em_data.volume import Array, Level, listed

# How units are written outside of OME-NGFF: by ImageJ, OME-XML, N5 and tensorstore.
UNITS_NM: dict[str, float] = NANOMETRES | {
    **{"Å": 0.1, "A": 0.1, "pm": 1e-3, "nm": 1.0, "mm": 1e6, "cm": 1e7, "m": 1e9},
    **{"um": 1e3, "µm": 1e3, "μm": 1e3, "\\u00B5m": 1e3, "micron": 1e3, "microns": 1e3},
}

FARTHEST_NM = 1e15  # 1000 km: no stage goes as far, and sums of what lies there lose no digit

# Numbered slices of which some are missing: refused, or taken as if the others followed each other.
Gaps = Literal["refuse", "close"]


class Wanted(NamedTuple):
    """What the caller of `open_volume` asks for."""

    at_nm: Float3 | None = None
    channel: int | str | None = None
    time: int | None = None
    gaps: Gaps = "refuse"
    options: Mapping[str, str] = {}  # of the address, for what only one format knows


@dataclass(frozen=True)
class Picked:
    """The spatial axes of an array whose other axes stand at one index each, or hold channels."""

    array: Array
    index: tuple[int | slice | None, ...]  # None: spatial; a slice: all channels
    channels: tuple[str, ...] = ()  # names of those that are kept

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
        """The voxels of a box: (z, y, x), or (C, z, y, x) where several channels are kept."""
        parts = iter(index)
        found = self.array[tuple(next(parts) if i is None else i for i in self.index)]
        kept = [i for i in self.index if not isinstance(i, int)]
        channel = next((at for at, i in enumerate(kept) if i is not None), None)
        return found if channel is None else np.moveaxis(found, channel, 0)

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
        if name not in axes and choice not in (None, 0, "0"):
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
    >>> pick_axes(np.zeros((2, 4, 5, 6)), "czyx", "a.tif", Wanted()).channels
    ('channel 0', 'channel 1')
    """
    names = [{"channel": "c", "time": "t"}.get(name, name) for name in axes]
    if len(names) != len(array.shape):
        raise VolumeFormatError(
            f"{source}: the metadata names {len(names)} axes {list(axes)}, but the array has the "
            f"shape {tuple(array.shape)}; repair the metadata"
        )
    check_axes(source, axes)
    index: list[int | slice | None] = []
    kept: tuple[str, ...] = ()
    for name, n in zip(names, array.shape, strict=True):
        if name in "zyx":
            index.append(None)
        elif name == "c":
            named = [*channels[:n], *(f"channel {i}" for i in range(len(channels), n))]
            chosen = _channel(source, n, wanted.channel, named)
            index.append(chosen)
            if channels or n > 1:
                kept = tuple(named) if isinstance(chosen, slice) else (named[chosen],)
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
    return Picked(array, tuple(index), kept) if len(index) > 3 else array


def _channel(source: str, n: int, choice: int | str | None, channels: Sequence[str]) -> int | slice:
    """Which channel is meant, or all of them where none is chosen."""
    if choice is None and n > 1:
        return slice(0, n)
    if isinstance(choice, str) and choice not in channels and not choice.isdigit():
        raise VolumeFormatError(
            f"{source} has no channel {choice!r}; it has {n} channels: {listed(channels)}"
        )
    if isinstance(choice, str):  # of an address, where numbers are texts, too
        choice = channels.index(choice) if choice in channels else int(choice)
    return _one(source, f"channels ({listed(channels)})", "channel", n, choice)


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
    if len(size_nm) != 3 or not all(_is_number(s) and 0 < s <= FARTHEST_NM for s in size_nm):
        raise VolumeFormatError(
            f"{source}: the voxel size is given as {_shown(size_nm)} nm; wanted three finite numbers "
            f"above 0, none beyond {FARTHEST_NM:g}: repair the metadata, or give voxel_size_nm when opening it"
        )
    # Units multiply out to numbers such as 4.000000000000001.
    return float3([float(f"{s:.12g}") for s in size_nm])


def first_voxel(source: str, origin_nm: Sequence[float]) -> Float3:
    """The place of the first voxel that was read from a file, refused when it is not finite."""
    if len(origin_nm) != 3 or not all(_is_number(o) and abs(o) <= FARTHEST_NM for o in origin_nm):
        raise VolumeFormatError(
            f"{source}: its origin is given as {_shown(origin_nm)} nm; wanted three finite numbers, "
            f"none beyond {FARTHEST_NM:g}: repair the metadata, or give origin_nm when opening it"
        )
    return float3(origin_nm)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _shown(values: Sequence[object]) -> str:
    return f"({', '.join(str(value)[:40] for value in values)})"


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

"""Labels and masks beside a raw volume: where they lie on it, and where in them a class is found.

Each has a voxel size and an origin of its own. Labels must lie on the voxels of the raw volume and
may cover a part of it; a mask may have any voxel size: the voxel nearest to a place counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from em_data.errors import BoxError, VolumeFormatError
from em_data.geometry import Box, Float3, Int3, float3, int3
from em_data.places import Anywhere, Places, end_of, intersect, shifted, span
from em_data.volume import Volume

SAME_SIZE = 1e-3  # relative difference of voxel sizes that is rounding
ON_GRID_VX = 0.05  # distance from the grid of voxels that is rounding
PIECE_VX: Int3 = (32, 128, 128)  # counted at once in arrays without chunks
PIECES_KEPT = 256  # whose voxels of a class are remembered, as bits


@dataclass(frozen=True)
class Layer:
    """A label or mask volume in its place on a raw volume."""

    volume: Volume
    raw_shape: Int3
    step: Float3 = (1.0, 1.0, 1.0)  # its voxels per raw voxel
    start: Float3 = (0.0, 0.0, 0.0)  # where raw voxel (0, 0, 0) lies, in its voxels

    def nearest(self, axis: int, start: int, stop: int) -> np.ndarray:
        """Its voxel nearest to each raw voxel of a range along one axis; outside may be met."""
        places = np.arange(start, stop) * self.step[axis] + (self.start[axis] + 0.5)
        return np.floor(places).astype(np.int64)

    @cached_property
    def covered(self) -> Box | None:
        """The raw voxels that it says something about."""
        low, high = [], []
        for axis, (raw, own) in enumerate(zip(self.raw_shape, self.volume.shape, strict=True)):
            index = self.nearest(axis, 0, raw)
            low.append(int(np.searchsorted(index, 0)))
            high.append(int(np.searchsorted(index, own)))
        return span(low, high) if all(o < h for o, h in zip(low, high, strict=True)) else None

    def own_box(self, box: Box) -> Box:
        """Its voxels at a box of raw voxels, for layers on the raw grid."""
        return Box(
            int3([round(o + s) for o, s in zip(box.origin_vx, self.start, strict=True)]),
            box.size_vx,
        )


@dataclass(frozen=True)
class Labels:
    """Label volumes of one raw volume, on its voxels: one channel each."""

    names: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def covered(self) -> tuple[Box, ...]:
        """The raw voxels that any of the channels covers."""
        return tuple(box for layer in self.layers if (box := layer.covered))

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds the values of all channels."""
        return np.result_type(*(layer.volume.dtype for layer in self.layers))

    @property
    def nbytes(self) -> int:
        """Bytes of all label volumes when decoded."""
        return sum(layer.volume.nbytes for layer in self.layers)

    def read(self, box: Box) -> np.ndarray:
        """The labels of a box of raw voxels, 0 where there are none: (C, Z, Y, X)."""
        values = np.zeros((len(self.layers), *box.size_vx), self.dtype)
        for channel, layer in zip(values, self.layers, strict=True):
            common = intersect(box, layer.covered) if layer.covered else None
            if common is not None:
                inner = shifted(common, box.origin_vx, -1)
                channel[inner.slices] = layer.volume.read(layer.own_box(common))
        return values

    def valid(self, box: Box) -> np.ndarray:
        """Which voxels of a box of raw voxels are labelled: (C, Z, Y, X) bool."""
        valid = np.zeros((len(self.layers), *box.size_vx), bool)
        for channel, layer in zip(valid, self.layers, strict=True):
            common = intersect(box, layer.covered) if layer.covered else None
            if common is not None:
                channel[shifted(common, box.origin_vx, -1).slices] = True
        return valid

    def held_in_memory(self) -> Labels:
        """The same labels with all of their voxels read once."""
        held = (replace(layer, volume=layer.volume.held_in_memory()) for layer in self.layers)
        return replace(self, layers=tuple(held))


def place_labels(raw: Volume, volumes: Mapping[str, Volume]) -> Labels:
    """Labels by name on the voxels of `raw`, each where its own voxel size and origin put it.

    Labels may cover a part of the raw volume. Another voxel size, an origin between voxels and labels
    beside the raw volume are refused.

    >>> raw = Volume(np.zeros((9, 8, 8), np.uint8), "raw", "numpy", (40, 4, 4))
    >>> cells = Volume(np.ones((2, 8, 8), np.uint8), "cells", "numpy", (40, 4, 4), (80, 0, 0))
    >>> place_labels(raw, {"cells": cells}).covered
    (Box(origin_vx=(2, 0, 0), size_vx=(2, 8, 8)),)
    """
    if not volumes:
        raise VolumeFormatError(f"{raw.source} was given no labels; name at least one volume")
    layers = []
    for name, volume in volumes.items():
        if volume.dtype.kind not in "bui":
            raise VolumeFormatError(
                f"labels {name!r} ({volume.source}) hold {volume.dtype}; wanted integers or bool"
            )
        layer = _place(raw, volume, f"labels {name!r}")
        for axis, step, start in zip("zyx", layer.step, layer.start, strict=True):
            if abs(step - 1) > SAME_SIZE:
                raise VolumeFormatError(
                    f"labels {name!r} ({volume.source}) have voxels of {_nm(volume)}, "
                    f"{raw.source} has {_nm(raw)}; resample the labels, or open the level of the raw "
                    "volume that fits them (at_nm)"
                )
            if abs(start - round(start)) > ON_GRID_VX:
                raise VolumeFormatError(
                    f"labels {name!r} ({volume.source}) begin at {_at(volume)}, {raw.source} at "
                    f"{_at(raw)}: {start % 1:.2f} voxels off its grid on {axis}; resample the labels, "
                    "or mend the origin that is wrong (origin_nm)"
                )
        layer = replace(
            layer, step=(1.0, 1.0, 1.0), start=float3([round(start) for start in layer.start])
        )
        layers.append(_overlapping(raw, layer, f"labels {name!r}"))
    return Labels(tuple(volumes), tuple(layers))


def place_mask(raw: Volume, mask: Volume) -> Layer:
    """A mask on `raw`, of any voxel size: what is not zero is allowed, outside of it nothing is."""
    return _overlapping(raw, _place(raw, mask, "mask"), "mask")


def _place(raw: Volume, volume: Volume, name: str) -> Layer:
    if raw.voxel_size_nm is None or volume.voxel_size_nm is None:
        known = [one for one in (raw, volume) if one.voxel_size_nm]
        if raw.shape == volume.shape and not known:
            return Layer(volume, raw.shape)
        unknown = " and ".join(o.source for o in (raw, volume) if o.voxel_size_nm is None)
        raise VolumeFormatError(
            f"{name} ({volume.source}, {volume.shape} voxels of {_nm(volume)}) cannot be placed on "
            f"{raw.source} ({raw.shape} voxels of {_nm(raw)}): {unknown} does not say its voxel size; "
            "give voxel_size_nm, and origin_nm, when opening it"
        )
    sizes = list(zip(raw.voxel_size_nm, volume.voxel_size_nm, strict=True))
    from_nm = zip(raw.origin_nm, volume.origin_nm, sizes, strict=True)
    step = [1.0 if abs(r / s - 1) <= SAME_SIZE else r / s for r, s in sizes]
    start = [(ours - theirs) / size for ours, theirs, (_, size) in from_nm]
    return Layer(volume, raw.shape, float3(step), float3(start))


def _overlapping(raw: Volume, layer: Layer, name: str) -> Layer:
    if layer.covered is None:
        own = layer.volume
        raise VolumeFormatError(
            f"{name} ({own.source}: {own.shape} voxels of {_nm(own)} from {_at(own)}) does not overlap "
            f"{raw.source} ({raw.shape} voxels of {_nm(raw)} from {_at(raw)}); give what belongs to "
            "this volume, or mend the origin that is wrong (origin_nm)"
        )
    return layer


def _nm(volume: Volume) -> str:
    size = volume.voxel_size_nm
    return "unknown size" if size is None else " × ".join(f"{s:g}" for s in size) + " nm"


def _at(volume: Volume) -> str:
    return "(" + ", ".join(f"{o:g}" for o in volume.origin_nm) + ") nm"


# Where a class is found --------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """Which voxels a share of the crops has at its centre."""

    name: str
    share: float
    layers: tuple[Layer | None, ...]  # of each volume
    value: int | None = None  # None: all that is not zero
    everywhere_without: bool = False  # whether all of a volume without a layer counts

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of {self.name!r} is {self.share:g}; wanted 0 < share ≤ 1")


def aim_at_masks(masks: Sequence[Layer | None]) -> Aim:
    """All crops have their centres in the masks; volumes without one are free."""
    return Aim("mask", 1.0, tuple(masks), everywhere_without=True)


def aim_at_classes(
    labels: Sequence[Labels | None], balance: Mapping[str, float] | Mapping[int, float]
) -> list[Aim]:
    """A share of the crops for each class: a channel by name, or a value of the only channel."""
    given = [one for one in labels if one is not None]
    if not given:
        raise ValueError(f"balance asks for {list(balance)}, but no volume has labels; give labels")
    names = given[0].names
    aims = []
    for key, share in balance.items():
        if key in names:
            channel, value = names.index(str(key)), None
        elif len(names) == 1 and str(key).isdigit():
            channel, value = 0, int(key)
        else:
            wanted = ", ".join(names) + (" or one of its values" if len(names) == 1 else "")
            raise ValueError(f"balance names {key!r}, but the labels are {wanted}; name those")
        layers = tuple(one.layers[channel] if one else None for one in labels)
        aims.append(Aim(str(key), share, layers, value))
    total = sum(aim.share for aim in aims)
    if total > 1 + 1e-9:
        raise ValueError(f"the shares of balance add up to {total:g}; wanted at most 1")
    return aims


def find_aims(
    aims: Sequence[Aim], boxes: Sequence[Sequence[Box]], centre_vx: Int3, *, threads: int
) -> list[tuple[Places, ...]]:
    """For each aim the origins of each volume whose crops have a voxel of it at their centre.

    Every layer is read once, chunk by chunk, to count; later the chunk of a sample is read again.
    """
    found: list[list[Places]] = [[] for _ in aims]
    for volume, own in enumerate(boxes):
        wanted: dict[int, list[int]] = {}  # numbers of the aims at one layer
        for number, aim in enumerate(aims):
            layer = aim.layers[volume]
            found[number].append(Anywhere(tuple(own) if aim.everywhere_without else ()))
            if layer is not None:
                wanted.setdefault(id(layer), []).append(number)
        for numbers in wanted.values():
            layer = aims[numbers[0]].layers[volume]
            assert layer is not None
            values = [aims[number].value for number in numbers]
            counted = count_voxels(layer, values, own, centre_vx, threads=threads)
            for number, voxels in zip(numbers, counted, strict=True):
                found[number][volume] = voxels
    for aim, places in zip(aims, found, strict=True):
        if not any(one.count for one in places):
            voxel = "voxel" if aim.value is None else f"voxel of value {aim.value}"
            sources = ", ".join(layer.volume.source for layer in aim.layers if layer)
            raise BoxError(
                f"{aim.name!r} has no {voxel} where crops may have their centres ({sources}); take "
                "other labels, leave this class out, or hold out less"
            )
    return [tuple(places) for places in found]


@dataclass(frozen=True, eq=False)
class Voxels:
    """The origins whose crops have a voxel of one value at their centre; counted, not listed."""

    layer: Layer
    value: int | None
    boxes: tuple[Box, ...]  # of origins, disjoint
    centre_vx: Int3
    pieces: tuple[Box, ...]  # of centres, each within one chunk of the layer
    ends: np.ndarray  # (pieces,) how many there are up to each

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, k: int) -> Int3:
        """The k-th of them."""
        piece = int(np.searchsorted(self.ends, k, side="right"))
        centre = self._piece(piece).find(k - (int(self.ends[piece - 1]) if piece else 0))
        return _minus(centre, self.centre_vx)

    @cached_property
    def _piece(self) -> Any:
        return lru_cache(PIECES_KEPT)(
            lambda at: _read(self.layer, self.pieces[at]).hits(self.value)
        )

    def within(self, box: Box) -> Places:
        """Those in a box of origins, read now."""
        parts = [part for own in self.boxes if (part := intersect(own, box))]
        centres = [shifted(part, self.centre_vx) for part in parts]
        found = [_read(self.layer, centre).hits(self.value) for centre in centres]
        return _Listed(tuple(found), self.centre_vx)


def count_voxels(
    layer: Layer,
    values: Sequence[int | None],
    boxes: Sequence[Box],
    centre_vx: Int3,
    *,
    threads: int,
) -> list[Voxels]:
    """Count the voxels of each value at the centres of all crops that begin in `boxes`."""
    pieces = [piece for box in boxes for piece in _pieces(layer, shifted(box, centre_vx))]
    counts = np.zeros((len(values), len(pieces)), np.int64)

    def count(first: int) -> None:
        for at in range(first, len(pieces), max(1, threads)):
            read = _read(layer, pieces[at])
            counts[:, at] = [read.hits(value).count for value in values]

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="em-data-count") as pool:
        list(pool.map(count, range(max(1, threads))))
    counted = []
    for value, each in zip(values, counts, strict=True):
        found = np.flatnonzero(each)
        kept = tuple(pieces[at] for at in found)
        counted.append(Voxels(layer, value, tuple(boxes), centre_vx, kept, np.cumsum(each[found])))
    return counted


def _pieces(layer: Layer, centres: Box) -> list[Box]:
    """A box of raw voxels cut where the chunks of a layer end, without what the layer leaves out."""
    covered = intersect(centres, layer.covered) if layer.covered else None
    if covered is None:
        return []
    cuts = []
    for axis, chunk in enumerate(layer.volume.chunk_vx or PIECE_VX):
        low, high = covered.origin_vx[axis], end_of(covered)[axis]
        chunk_of = layer.nearest(axis, low, high) // chunk
        inner = np.flatnonzero(np.diff(chunk_of)) + 1 + low
        cuts.append([low, *inner.tolist(), high])
    steps = [list(itertools.pairwise(edges)) for edges in cuts]
    return [span(*zip(*sides, strict=True)) for sides in itertools.product(*steps)]


@dataclass(frozen=True)
class _Hits:
    """The raw voxels of a box whose nearest voxel in a layer has a value, as bits."""

    bits: np.ndarray  # (z, y·x / 8) of the layer's voxels
    plane: tuple[int, int]  # (y, x)
    starts: tuple[np.ndarray, ...]  # first raw voxel of each voxel of the layer, along each axis
    lengths: tuple[np.ndarray, ...]  # and how many raw voxels it is nearest to
    ends: np.ndarray  # (z,) raw voxels found up to each slice of the layer

    @property
    def count(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, k: int) -> Int3:
        """The k-th raw voxel."""
        z = int(np.searchsorted(self.ends, k, side="right"))
        k -= int(self.ends[z - 1]) if z else 0
        size = self.plane[0] * self.plane[1]
        hit = np.unpackbits(self.bits[z], count=size).reshape(self.plane)
        rows = hit @ self.lengths[2]  # raw voxels along x in each row
        dz, k = divmod(k, int(rows @ self.lengths[1]))
        ends = np.cumsum(rows * self.lengths[1])
        y = int(np.searchsorted(ends, k, side="right"))
        dy, k = divmod(k - (int(ends[y - 1]) if y else 0), int(rows[y]))
        ends = np.cumsum(hit[y] * self.lengths[2])
        x = int(np.searchsorted(ends, k, side="right"))
        dx = k - (int(ends[x - 1]) if x else 0)
        starts = (self.starts[0][z] + dz, self.starts[1][y] + dy, self.starts[2][x] + dx)
        return int3(starts)


@dataclass(frozen=True)
class _Listed:
    """The origins of several boxes that were read."""

    parts: tuple[_Hits, ...]
    centre_vx: Int3

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def find(self, k: int) -> Int3:
        for part in self.parts:
            if k < part.count:
                return _minus(part.find(k), self.centre_vx)
            k -= part.count
        raise IndexError(k)

    def within(self, box: Box) -> Places:
        raise NotImplementedError("a block is not cut again")


class _Read(NamedTuple):
    """The voxels of a layer nearest to a box of raw voxels."""

    voxels: np.ndarray
    starts: tuple[np.ndarray, ...]
    lengths: tuple[np.ndarray, ...]

    def hits(self, value: int | None) -> _Hits:
        """Where they have a value."""
        hit = self.voxels != 0 if value is None else self.voxels == value
        if all((length == 1).all() for length in self.lengths):
            slices = np.count_nonzero(hit, axis=(1, 2))
        else:
            slices = (hit @ self.lengths[2] @ self.lengths[1]) * self.lengths[0]
        bits = np.packbits(hit.reshape(len(hit), -1), axis=1)
        return _Hits(bits, hit.shape[1:], self.starts, self.lengths, np.cumsum(slices))


def _read(layer: Layer, centres: Box) -> _Read:
    covered = intersect(centres, layer.covered) if layer.covered else None
    if covered is None:
        nothing = np.zeros(0, np.int64)
        return _Read(np.zeros((0, 0, 0), np.uint8), (nothing,) * 3, (nothing,) * 3)
    low, size, starts, lengths = [], [], [], []
    for axis, (start, stop) in enumerate(zip(covered.origin_vx, end_of(covered), strict=True)):
        index = layer.nearest(axis, start, stop)
        length = np.bincount(index - index[0])  # 0 where a finer layer is passed over
        low.append(int(index[0]))
        size.append(len(length))
        lengths.append(length)
        starts.append(start + np.cumsum(length) - length)
    voxels = layer.volume.read(Box(int3(low), int3(size)))
    return _Read(voxels, tuple(starts), tuple(lengths))


def _minus(a: Int3, b: Int3) -> Int3:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])

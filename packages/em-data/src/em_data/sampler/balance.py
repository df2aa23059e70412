"""Where in labels and masks a class is found, so that a share of the crops can have it at the centre.

Every layer is read once to count; what is found is not listed, but the k-th of it can be read again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, end_of, int3, intersect, shifted, span
from em_data.labels import Labels, PlacedVolume
from em_data.sampler.places import Anywhere, Counted, Places

PIECE_VX: Int3 = (32, 128, 128)  # counted at once in arrays without chunks
PIECES_KEPT = 256  # whose voxels of a class are remembered, as bits


@dataclass(frozen=True)
class Aim:
    """Which voxels a share of the crops has at its centre."""

    name: str
    share: float
    layers: tuple[PlacedVolume | None, ...]  # of each volume
    value: int | None = None  # None: all that is not zero
    everywhere_without: bool = False  # whether all of a volume without a layer counts

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of {self.name!r} is {self.share:g}; wanted 0 < share ≤ 1")


def aim_at_masks(masks: Sequence[PlacedVolume | None]) -> Aim:
    """All crops have their centres in the masks; volumes without one are free."""
    return Aim("mask", 1.0, tuple(masks), everywhere_without=True)


def aim_at_classes(
    labels: Sequence[Labels | None], balance: Mapping[str, float] | Mapping[int, float]
) -> list[Aim]:
    """A share of the crops for each class: a channel by name, or VALUE or NAME@VALUE of the only one."""
    given = [one for one in labels if one is not None]
    if not given:
        raise ValueError(f"balance asks for {list(balance)}, but no volume has labels; give labels")
    names = given[0].names
    aims = []
    for key, share in balance.items():
        name, _, number = str(key).rpartition("@")
        if key in names:
            name, channel, value = str(key), names.index(str(key)), None
        elif len(names) == 1 and number.isdigit():
            channel, value = 0, int(number)
        else:
            wanted = ", ".join(names) + (" or one of its values" if len(names) == 1 else "")
            raise ValueError(f"balance names {key!r}, but the labels are {wanted}; name those")
        layers = tuple(one.layers[channel] if one else None for one in labels)
        aims.append(Aim(name or str(key), share, layers, value))
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

    layer: PlacedVolume
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

    def within(self, box: Box) -> Counted:
        """Those in a box of origins, read now."""
        parts = [part for own in self.boxes if (part := intersect(own, box))]
        centres = [shifted(part, self.centre_vx) for part in parts]
        found = [_read(self.layer, centre).hits(self.value) for centre in centres]
        return _Listed(tuple(found), self.centre_vx)


def count_voxels(
    layer: PlacedVolume,
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


def _pieces(layer: PlacedVolume, centres: Box) -> list[Box]:
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
        bits = np.packbits(hit.reshape(len(hit), math.prod(hit.shape[1:])), axis=1)
        return _Hits(bits, hit.shape[1:], self.starts, self.lengths, np.cumsum(slices))


def _read(layer: PlacedVolume, centres: Box) -> _Read:
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
    if layer.ignore is not None:
        voxels = np.where(voxels == layer.ignore, 0, voxels)
    return _Read(voxels, tuple(starts), tuple(lengths))


def _minus(a: Int3, b: Int3) -> Int3:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])

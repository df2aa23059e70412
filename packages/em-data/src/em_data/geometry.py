"""Boxes of voxels and physical units: the words in which every other module says *where*.

Order is always (z, y, x). Sizes carry their unit in the name: `_vx` voxels, `_nm` nanometres.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from em_data.errors import BoxError

Int3 = tuple[int, int, int]
Float3 = tuple[float, float, float]

# UDUNITS-2 names that OME-NGFF allows for space, in nanometres. https://ngff.openmicroscopy.org
NANOMETRES: dict[str, float] = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
    "picometer": 1e-3,
}


class Box(NamedTuple):
    """A half-open box of voxels: `origin_vx` is inside, `origin_vx + size_vx` is not."""

    origin_vx: Int3
    size_vx: Int3

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of an array.

        >>> Box((1, 2, 3), (4, 4, 4)).slices
        (slice(1, 5, None), slice(2, 6, None), slice(3, 7, None))
        """
        z, y, x = (slice(o, o + s) for o, s in zip(self.origin_vx, self.size_vx, strict=True))
        return z, y, x


def check_inside(box: Box, shape: Int3, name: str = "crop") -> None:
    """Refuse a box that is empty or leaves the volume, naming the axis.

    >>> check_inside(Box((0, 0, 0), (64, 256, 256)), (50, 1024, 1024))
    Traceback (most recent call last):
    ...
    em_data.errors.BoxError: crop (64, 256, 256) at (0, 0, 0) exceeds volume (50, 1024, 1024) on z; \
take a smaller crop
    """
    for axis, o, s, n in zip("zyx", box.origin_vx, box.size_vx, shape, strict=True):
        if s < 1:
            raise BoxError(f"{name} {box.size_vx} is empty on {axis}; every side must be ≥ 1 voxel")
        if o < 0 or o + s > n:
            raise BoxError(
                f"{name} {box.size_vx} at {box.origin_vx} exceeds volume {tuple(shape)} on {axis}; "
                f"take a smaller {name}"
            )


def tiles(shape: Int3, block_vx: Int3) -> Iterator[Box]:
    """Boxes of at most `block_vx` that tile `shape`, in C order.

    >>> [box.size_vx for box in tiles((3, 4, 4), (2, 4, 4))]
    [(2, 4, 4), (1, 4, 4)]
    """
    starts = (range(0, n, b) for n, b in zip(shape, block_vx, strict=True))
    for z, y, x in itertools.product(*starts):
        size = tuple(min(b, n - o) for o, b, n in zip((z, y, x), block_vx, shape, strict=True))
        yield Box((z, y, x), int3(size))


def int3(values: Sequence[int]) -> Int3:
    """Three integers as a (z, y, x) tuple.

    >>> int3([1, 2, 3])
    (1, 2, 3)
    """
    z, y, x = values
    return int(z), int(y), int(x)


def float3(values: Sequence[float]) -> Float3:
    """Three floats as a (z, y, x) tuple.

    >>> float3((45, 4.6, 4.6))
    (45.0, 4.6, 4.6)
    """
    z, y, x = values
    return float(z), float(y), float(x)


def intersect(a: Box, b: Box) -> Box | None:
    """The voxels of both boxes.

    >>> intersect(Box((0, 0, 0), (4, 4, 4)), Box((2, 1, 0), (4, 2, 9)))
    Box(origin_vx=(2, 1, 0), size_vx=(2, 2, 4))
    """
    low = [max(pair) for pair in zip(a.origin_vx, b.origin_vx, strict=True)]
    high = [min(pair) for pair in zip(end_of(a), end_of(b), strict=True)]
    size = [h - o for o, h in zip(low, high, strict=True)]
    return Box(int3(low), int3(size)) if min(size) > 0 else None


def subtract(box: Box, hole: Box) -> list[Box]:
    """What of `box` lies outside of `hole`, as at most six disjoint boxes."""
    common = intersect(box, hole)
    if common is None:
        return [box]
    parts = []
    low, high = list(box.origin_vx), list(end_of(box))
    for axis in range(3):
        start, stop = common.origin_vx[axis], end_of(common)[axis]
        for first, last in ((low[axis], start), (stop, high[axis])):
            if first < last:
                parts.append(
                    span(
                        [*low[:axis], first, *low[axis + 1 :]],
                        [*high[:axis], last, *high[axis + 1 :]],
                    )
                )
        low[axis], high[axis] = start, stop
    return parts


def disjoint(boxes: Sequence[Box]) -> list[Box]:
    """Boxes that cover the same voxels, none of them twice."""
    found: list[Box] = []
    for box in boxes:
        parts = [box]
        for other in list(found):
            parts = [rest for part in parts for rest in subtract(part, other)]
        found += parts
    return found


def span(low: Sequence[int], high: Sequence[int]) -> Box:
    """The box from `low` up to, without, `high`."""
    return Box(int3(low), int3([h - o for o, h in zip(low, high, strict=True)]))


def end_of(box: Box) -> Int3:
    """The first voxel after the box along each axis."""
    return int3([o + s for o, s in zip(box.origin_vx, box.size_vx, strict=True)])


def bounds(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of `boxes`."""
    low = [min(box.origin_vx[axis] for box in boxes) for axis in range(3)]
    high = [max(end_of(box)[axis] for box in boxes) for axis in range(3)]
    return span(low, high)


def shifted(box: Box, by: Sequence[int], sign: int = 1) -> Box:
    """The box moved along (z, y, x)."""
    return Box(int3([o + sign * d for o, d in zip(box.origin_vx, by, strict=True)]), box.size_vx)

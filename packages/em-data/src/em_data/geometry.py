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

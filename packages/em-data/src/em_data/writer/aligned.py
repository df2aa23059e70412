"""Inputs beside a volume, such as a coarse map, each with voxels of its own size.

The tiles of a volume are cut out of every input where the same tissue lies. That needs voxel sizes in
a simple ratio and edges of tiles that lie on edges of voxels in all of them; both are checked once, so
that nothing is resampled. Beyond the borders of the volume all inputs are mirrored at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.geometry import Box, Int3, int3
from em_data.volume import Volume

if TYPE_CHECKING:
    from em_data.writer.tiling import TileGrid

SIMPLE = (
    16  # largest denominator of a ratio of voxel sizes that is neither a number nor its inverse
)
ON_GRID_VX = 0.05  # distance from the edge of a voxel that is rounding


@dataclass(frozen=True)
class Aligned:
    """An input in its place beside a volume."""

    volume: Volume
    beside: Int3  # voxels of the volume that it lies beside
    per: tuple[Fraction, Fraction, Fraction]  # its voxels for each of that volume
    start: tuple[Fraction, Fraction, Fraction]  # where that volume begins, in its voxels

    def places(self, source: Box) -> list[np.ndarray]:
        """Its voxels at a box of the volume, along each axis; the box may leave the volume.

        A voxel that lies outside counts as the one at its mirror image, and of two that are as near
        as the first.
        """
        found = []
        for axis, n in enumerate(self.beside):
            per, start = self.per[axis], self.start[axis]
            p, q = per.denominator, per.numerator
            t = int(start * p)
            first = int(source.origin_vx[axis] * per + start)
            voxels = np.arange(first, first + int(source.size_vx[axis] * per), dtype=np.int64)
            # The centre of each in half voxels of the volume over q: whole numbers, so exact.
            whole, rest = np.divmod((2 * voxels + 1) * p - 2 * t, 2 * q)
            if n > 1:
                whole %= 2 * n - 2
                turned = whole > n - 1
                whole = np.where(turned, 2 * n - 2 - whole, whole)
                rest = np.where(turned, 2 * q - rest, rest)
            else:
                whole = np.zeros_like(whole)
            back = -(-(whole * 2 * q + rest + 2 * t) // (2 * p)) - 1
            found.append(back.clip(0, self.volume.shape[axis] - 1))
        return found

    def part(self, box: Box) -> Box:
        """Its voxels of a tile, where both are counted from the first voxel of what was read."""
        sides = zip(box.origin_vx, self.per, strict=True)
        origin = int3([int(o * per) for o, per in sides])
        return Box(origin, int3([int(s * p) for s, p in zip(box.size_vx, self.per, strict=True)]))


def align(volume: Volume, other: Volume, grid: TileGrid) -> Aligned:
    """An input in its place beside a volume, refused where its voxels do not fit the tiles."""
    ratios, starts = [], []
    for axis, name in enumerate("zyx"):
        per, start = _ratio(volume, other, axis)
        for what, side in (("tile", grid.input_vx), ("step", grid.step_vx)):
            if (side[axis] * per).denominator > 1:
                raise VolumeFormatError(
                    f"{other.source} has {per} voxels for each of {volume.source} on {name}, and the "
                    f"tiles' {what} of {side[axis]} is no whole number of them; take a multiple of "
                    f"{per.denominator}"
                )
        edge = start - grid.halo_vx[axis] * per
        if edge.denominator > 1:
            raise VolumeFormatError(
                f"the first tile of {volume.source} begins at {float(edge):g} voxels of "
                f"{other.source} on {name}, inside of a voxel; take a halo that is a multiple of "
                f"{per.denominator}, or mend the origin that is wrong (origin_nm)"
            )
        end = volume.shape[axis] * per + start
        if start <= -1 or end >= other.shape[axis] + 1:
            raise VolumeFormatError(
                f"{other.source} ends before {volume.source} does: of its voxels {float(start):g} to "
                f"{float(end):g} are wanted on {name}, and it has 0 to {other.shape[axis]}; give one "
                "that covers the volume"
            )
        ratios.append(per)
        starts.append(start)
    (z, y, x), (z0, y0, x0) = ratios, starts
    return Aligned(other, volume.shape, (z, y, x), (z0, y0, x0))


def _ratio(volume: Volume, other: Volume, axis: int) -> tuple[Fraction, Fraction]:
    """Voxels of `other` for each of `volume`, and where the latter begins in them."""
    if volume.voxel_size_nm is None or other.voxel_size_nm is None:
        if volume.voxel_size_nm is other.voxel_size_nm and volume.shape == other.shape:
            return Fraction(1), Fraction(0)
        unknown = volume if volume.voxel_size_nm is None else other
        raise VolumeFormatError(
            f"{unknown.source} does not say its voxel size, so {other.source} cannot be placed beside "
            f"{volume.source}; say it in the address, ?voxel_nm=Z,Y,X"
        )
    own, theirs = volume.voxel_size_nm[axis], other.voxel_size_nm[axis]
    per = _simple(own / theirs, other.shape[axis])
    if per is None:
        raise VolumeFormatError(
            f"{other.source} has voxels of {theirs:g} nm on {'zyx'[axis]}, {volume.source} of {own:g} "
            f"nm, which is no ratio of whole numbers up to {SIMPLE}; resample it, or mend the voxel "
            "size that is wrong"
        )
    edges = (volume.origin_nm[axis] - own / 2) - (other.origin_nm[axis] - theirs / 2)
    exact = edges / theirs
    start = Fraction(round(exact * per.denominator), per.denominator)
    if abs(exact - start) > ON_GRID_VX:
        raise VolumeFormatError(
            f"{volume.source} begins at {exact:.2f} voxels of {other.source} on {'zyx'[axis]}, which "
            f"is off its grid; mend the origin that is wrong (origin_nm; a voxel that averages "
            "several has its origin in their middle), or resample it"
        )
    return per, start


def _simple(ratio: float, count: int) -> Fraction | None:
    """The ratio in whole numbers, where it stays on the grid over `count` voxels."""
    for found in (
        Fraction(round(ratio)),
        Fraction(1, max(1, round(1 / ratio))),
        Fraction(ratio).limit_denominator(SIMPLE),
    ):
        if found and abs(float(found) / ratio - 1) * count <= ON_GRID_VX:
            return found
    return None


def read_places(volume: Volume, places: Sequence[np.ndarray]) -> np.ndarray:
    """Voxels at places along each axis: (z, y, x), or (C, z, y, x) of a volume with channels."""
    origin = [int(at.min()) for at in places]
    size = [int(at.max()) - o + 1 for at, o in zip(places, origin, strict=True)]
    box = Box(int3(origin), int3(size))
    several = len(volume.channels) > 1
    voxels = volume.read_channels(box) if several else volume.read(box)
    for axis, (at, o) in enumerate(zip(places, origin, strict=True), voxels.ndim - 3):
        if len(at) != voxels.shape[axis] or (np.diff(at) != 1).any():
            voxels = voxels.take(at - o, axis)
    return voxels

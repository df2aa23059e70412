"""Which cell is where in the synthetic tissue, and how far below its membrane a place lies.

Cells are the regions nearest to randomly placed line segments with a radius (processes) and
balls (cell bodies). Places are displaced by smooth noise first, so cells are curved and meet in
curved walls. All lengths are in nanometres. Which cells are looked at depends on the box; which
one is nearest does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.config import BODY_PITCH, MARGIN, SEED_PITCH, Whole, lattice_shape
from em_data.synthetic.hashing import Float, hash_uniform, smooth_noise

if TYPE_CHECKING:
    from em_data.synthetic.config import SyntheticConfig

Double = NDArray[np.float64]
Triple = tuple[int, int, int]

TILE_NM = 192.0  # the fastest of 96 to 256 on volumes of 8 nm voxels

BODY_RADIUS = (1.25, 1.45)  # as multiples of the radius of a nucleus

# Lengths as multiples of the cell size.
HALF_LENGTH = (0.5, 2.0)
RADIUS = (0.1, 1.0)
BENDS = ((0.9, 0.16), (0.32, 0.045))  # pitch and reach of the noise that displaces places
# No place is farther from its two nearest cells than this many seed pitches: the far corner of
# the lattice cell that holds one seed, and of the cell beside it, sqrt(1.5**2 + 1 + 1).
FARTHEST = 2.07


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The cells near a box, one row each: cell bodies first."""

    number: Whole  # unique in the volume: even for bodies, odd for processes
    middle: Float  # (N, 3) nm
    frame: Float  # (N, 3, 3) unit vectors: along the segment and two across
    half_length: Float  # (N,) nm, 0 for bodies
    radius: Float  # (N,) nm
    bodies: int  # how many of the rows are cell bodies


@dataclass(frozen=True, kw_only=True)
class CellMap:
    """The cell at each voxel of a box, and the voxel's place in it; arrays are flat."""

    cells: Cells
    row: NDArray[np.int32]  # of `cells`
    place: list[Float]  # displaced z, y, x in nm
    depth: Float  # nm to the border between cells
    tilt: Float  # part of the normal of that border along z, 0 to 1


def map_cells(config: "SyntheticConfig", origin_vx: Triple, size_vx: Triple) -> CellMap:
    """The cells of a box, which may reach beyond the volume."""
    # One voxel more on each side, for the slope of the distance to the border.
    origin = (origin_vx[0] - 1, origin_vx[1] - 1, origin_vx[2] - 1)
    size = (size_vx[0] + 2, size_vx[1] + 2, size_vx[2] + 2)
    place = _bent_places(config, origin, size)
    cells = _cells_near(config, place)
    row, gap = _nearest_cells(config, cells, place)
    depth, tilt = _depth(gap, config.voxel_size_nm)
    inner = (slice(1, -1),) * 3
    return CellMap(
        cells=cells,
        row=row[inner].ravel(),
        place=[axis[inner].ravel() for axis in place],
        depth=depth,
        tilt=tilt,
    )


def _bent_places(config: "SyntheticConfig", origin_vx: Triple, size_vx: Triple) -> list[Float]:
    """Places (z, y, x) of the voxels in nm, displaced by smooth noise."""
    bent = []
    for axis, name in enumerate("zyx"):
        index = np.arange(origin_vx[axis], origin_vx[axis] + size_vx[axis])
        straight = ((index + 0.5) * config.voxel_size_nm[axis]).astype(np.float32)
        place = np.zeros(size_vx, np.float32)
        place += straight.reshape([-1 if axis == other else 1 for other in range(3)])
        for pitch, reach in BENDS:
            bend = smooth_noise(
                config.seed,
                f"bend {name} {pitch}",
                origin_vx=origin_vx,
                size_vx=size_vx,
                voxel_size_nm=config.voxel_size_nm,
                pitch_nm=pitch * config.cell_size_nm,
            )
            bend *= reach * config.irregularity * config.cell_size_nm
            place += bend
        bent.append(place)
    return bent


def _cells_near(config: "SyntheticConfig", place: list[Float]) -> Cells:
    """All cells that can be one of the two nearest to some place."""
    seed, scale = config.seed, config.cell_size_nm
    pitch = SEED_PITCH * scale
    reach = (HALF_LENGTH[1] + RADIUS[1]) * scale + FARTHEST * pitch
    low = np.array([axis.min() for axis in place], np.float64) - reach
    high = np.array([axis.max() for axis in place], np.float64) + reach
    # Bodies that shorten a process from afar count as well.
    far = HALF_LENGTH[1] * scale
    body_at, body_middle, body_radius = _cell_bodies(config, low - far, high + far)
    at = _lattice(low / pitch, high / pitch)
    middle = pitch * (at + _uniform_rows(seed, "seed", at, 3))
    half_length = scale * between(HALF_LENGTH, _uniform_rows(seed, "length", at, 1)[:, 0])
    # The cube makes most processes thin and a few thick.
    radius = scale * between(RADIUS, _uniform_rows(seed, "radius", at, 1)[:, 0] ** 3)

    # A process keeps out of cell bodies: it ends before it could enter one.
    away = middle[:, None] - body_middle
    free = (np.sqrt((away * away).sum(-1)) - body_radius).min(axis=1, initial=np.inf)
    keep = free > 0
    at, middle, radius = at[keep], middle[keep], radius[keep]
    half_length = np.minimum(half_length, free)[keep]

    body_pitch = BODY_PITCH * config.nucleus_radius_nm
    body_at += (lattice_shape(config, body_pitch) - 2 * MARGIN) // 2  # counted from the middle
    number = np.concatenate(
        [2 * _rank(config, body_at, body_pitch) + 2, 2 * _rank(config, at, pitch) + 1]
    )
    return Cells(
        number=number,
        middle=np.concatenate([body_middle, middle]).astype(np.float32),
        frame=_frames(seed, number),
        half_length=np.concatenate([np.zeros(len(body_at)), half_length]).astype(np.float32),
        radius=np.concatenate([body_radius, radius]).astype(np.float32),
        bodies=len(body_at),
    )


def _cell_bodies(
    config: "SyntheticConfig", low: Double, high: Double
) -> tuple[Whole, Double, Double]:
    """Lattice place, middle and radius of the cell bodies that reach into a region.

    Their lattice is centred on the volume, and the central one is always there: all but very
    small volumes show one.
    """
    extent = np.array(config.shape_vx) * np.array(config.voxel_size_nm)
    pitch = BODY_PITCH * config.nucleus_radius_nm
    largest = BODY_RADIUS[1] * config.nucleus_radius_nm
    at = _lattice(
        (low - largest - extent / 2) / pitch - 1, (high + largest - extent / 2) / pitch + 1
    )
    play = np.minimum(0.3 * pitch, 0.22 * extent)
    jitter = 2 * _uniform_rows(config.seed, "body", at, 3) - 1
    middle = extent / 2 + at * pitch + play * jitter
    radius = config.nucleus_radius_nm * between(
        BODY_RADIUS, _uniform_rows(config.seed, "body radius", at, 1)[:, 0]
    )
    central = ~at.any(axis=1)
    shown = _uniform_rows(config.seed, "body shown", at, 1)[:, 0] < 0.5
    # Where one body would fill more than a third of the volume's width squared, there are none.
    fits = np.pi * largest**2 < 0.35 * extent[1:].min() ** 2
    keep = fits & (central | shown)
    return at[keep], middle[keep], radius[keep]


def _nearest_cells(
    config: "SyntheticConfig", cells: Cells, place: list[Float]
) -> tuple[NDArray[np.int32], Float]:
    """Row of the nearest cell at each place, and how much farther away (nm) the next one is."""
    shape = place[0].shape
    nearest = np.empty(shape, np.int32)
    gap = np.empty(shape, np.float32)
    cap = FARTHEST * SEED_PITCH * config.cell_size_nm
    tile_vx = [max(1, round(TILE_NM / voxel)) for voxel in config.voxel_size_nm]
    starts = [range(0, size, tile) for size, tile in zip(shape, tile_vx, strict=True)]
    axes = cells.frame[:, 0]
    for start in product(*starts):
        tile = tuple(slice(a, a + b) for a, b in zip(start, tile_vx, strict=True))
        local = [np.ascontiguousarray(axis[tile]) for axis in place]
        low = np.array([axis.min() for axis in local])
        high = np.array([axis.max() for axis in local])
        half_diagonal = float(np.sqrt(((high - low) ** 2).sum())) / 2
        distance = segment_distance(
            list(((low + high) / 2 - cells.middle).T), axes.T, cells.half_length
        )
        distance -= cells.radius
        second = np.partition(distance, 1)[1] if len(distance) > 1 else cap
        # One nm more than needed, against rounding; which cells are tried in vain changes nothing.
        limit = min(float(second) + half_diagonal, cap) + half_diagonal + 1
        tried = np.flatnonzero(distance <= limit)

        first = np.full(local[0].shape, cap, np.float32)
        next_first = first.copy()
        row = np.full(first.shape, -1, np.int32)
        for index in tried:
            away = [local[k] - cells.middle[index, k] for k in range(3)]
            distance = segment_distance(away, axes[index], cells.half_length[index])
            distance -= cells.radius[index]
            np.copyto(row, index, where=distance < first)
            np.minimum(next_first, np.maximum(first, distance), out=next_first)
            np.minimum(first, distance, out=first)
        nearest[tile] = row
        gap[tile] = next_first - first
    return nearest, gap


def segment_distance(
    away: Sequence[Float], axis: Sequence[Float] | Float, half_length: Float | float
) -> Float:
    """Distance to a segment from its middle, its direction and its half length."""
    along = away[0] * axis[0]
    along += away[1] * axis[1]
    along += away[2] * axis[2]
    nearest = np.minimum(along, half_length)
    np.maximum(nearest, -half_length, out=nearest)
    square = away[0] * away[0]
    square += away[1] * away[1]
    square += away[2] * away[2]
    # |away - nearest axis|² = square - nearest (2 along - nearest)
    along *= 2
    along -= nearest
    along *= nearest
    square -= along
    np.maximum(square, 0, out=square)
    return np.sqrt(square, out=square)


def _depth(gap: Float, voxel_size_nm: tuple[float, float, float]) -> tuple[Float, Float]:
    """Distance to the border between cells (nm), and how far that border is tilted into z (0-1).

    The gap grows with distance from the border by its slope: dividing by it makes membranes
    equally thick everywhere. The gap has a kink at the border, so of the two one-sided slopes on
    each axis the steeper one counts.
    """
    inner = (slice(1, -1),) * 3
    square: Float = np.zeros(gap[inner].shape, np.float32)
    for axis in (2, 1, 0):
        across = tuple(slice(None) if k == axis else slice(1, -1) for k in range(3))
        step = np.diff(gap[across], axis=axis)
        np.abs(step, out=step)
        below = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        above = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        slope: Float = np.maximum(step[below], step[above])
        slope /= voxel_size_nm[axis]
        square += slope * slope
    steepness = np.sqrt(square, out=square)
    np.maximum(steepness, 0.05, out=steepness)
    tilt = np.divide(slope, steepness, out=slope)  # the loop ends with z
    depth = np.divide(gap[inner], steepness, out=steepness)
    return depth.ravel(), np.minimum(tilt, 1, out=tilt).ravel()


def _lattice(low: Double, high: Double) -> Whole:
    """Integer places (N, 3) of a region, its borders rounded outwards."""
    ranges = [np.arange(np.floor(a), np.floor(b) + 1) for a, b in zip(low, high, strict=True)]
    grid = np.meshgrid(*ranges, indexing="ij")
    return np.stack([axis.ravel() for axis in grid], axis=1).astype(np.int64)


def _rank(config: "SyntheticConfig", at: Whole, pitch_nm: float) -> Whole:
    """Position of lattice places (N, 3) in the list of all that can matter to the volume."""
    _, count_y, count_x = lattice_shape(config, pitch_nm)
    z, y, x = (at + MARGIN).T
    return (z * count_y + y) * count_x + x


def _frames(seed: int, number: Whole) -> Float:  # (N, 3, 3)
    """Three unit vectors at right angles for each cell."""
    # Sums of four numbers point nearly equally often in all directions, and need no cosine.
    draws = _uniform_rows(seed, "direction", number[:, None], 24).reshape(-1, 2, 3, 4)
    along, other = (draws.sum(axis=-1) - 2).transpose(1, 0, 2)
    along /= np.sqrt((along * along).sum(axis=1, keepdims=True))
    other -= (other * along).sum(axis=1, keepdims=True) * along
    other /= np.sqrt((other * other).sum(axis=1, keepdims=True))
    return np.stack([along, other, np.cross(along, other)], axis=1).astype(np.float32)


def _uniform_rows(seed: int, stream: str, at: Whole, count: int) -> Double:  # (N, count)
    """`count` random numbers in [0, 1) for each row of integer coordinates."""
    columns = [axis[:, None] for axis in at.T]
    return hash_uniform(seed, stream, *columns, np.arange(count)).astype(np.float64)


def between(limits: tuple[float, float], share: NDArray[Any]) -> NDArray[Any]:
    """The value at a share (0 to 1) of the way between two limits."""
    return limits[0] + (limits[1] - limits[0]) * share

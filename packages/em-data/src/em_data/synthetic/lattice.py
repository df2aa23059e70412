"""Synthetic atomic-resolution STEM images of crystals, with truth: where each column of atoms is.

An image is a function of (seed, index) alone, and images differ by orientation, spacing, contrast
and by what they show: a whole crystal, its edge before the vacuum, or two grains that meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from em_data.synthetic.config import Range, check_image, check_index, check_numbers
from em_data.synthetic.hashing import Float, hash_normal, hash_uniform, smooth_image

Double = NDArray[np.float64]
Bravais = Literal["square", "hexagonal", "centred", "honeycomb"]


class Cell(NamedTuple):
    """A unit cell of spacing 1: two vectors, and what lies in it."""

    vectors: tuple[tuple[float, float], tuple[float, float]]  # (y, x)
    motif: tuple[tuple[float, float, int], ...]  # shares of the vectors, number of the sublattice
    nearest: float  # distance between neighbours
    fold: int  # turns that change nothing


SQUARE = ((0.0, 1.0), (1.0, 0.0))
SIXFOLD = ((0.0, 1.0), (math.sqrt(0.75), 0.5))
CELLS = {
    "square": Cell(SQUARE, ((0, 0, 1),), 1.0, 4),
    "hexagonal": Cell(SIXFOLD, ((0, 0, 1),), 1.0, 6),
    # As a perovskite along [001], and a disulfide from above: the second sublattice is fainter.
    "centred": Cell(SQUARE, ((0, 0, 1), (0.5, 0.5, 2)), math.sqrt(0.5), 4),
    "honeycomb": Cell(SIXFOLD, ((0, 0, 1), (1 / 3, 1 / 3, 2)), math.sqrt(1 / 3), 6),
}
REACH = 4.0  # deviations of a column that are drawn
DISC = 1.2  # radius of the disc that stands for a column in the truth, in its deviations
HAZE = 0.6  # width of the haze around a column, in spacings
BEND = 6.0  # spacings over which strain and thickness change
NOISE_SLOPE = 1.35  # deviation of the slope of smooth noise along an axis, over a pitch


@dataclass(frozen=True, kw_only=True)
class LatticeConfig:
    """A collection of atomic-resolution images of crystals; ranges are drawn from for each image."""

    size_px: tuple[int, int] = (256, 256)
    """Size (y, x) of an image in pixels."""
    pixel_nm: float = 0.02
    """Side of a pixel in nm."""
    seed: int = 0
    """Seed of the collection: 0 to 2**32 - 1."""
    lattice: Literal["any"] | Bravais = "any"
    """Lattice: square, hexagonal, centred (square with a second column in the middle), honeycomb (two
    sublattices of a hexagonal cell), or any of them."""
    spacing_nm: Range = (0.28, 0.42)
    """Lattice constant in nm."""
    column_nm: float = 0.045
    """Deviation of the Gaussian that a column looks like, in nm."""
    second: Range = (0.3, 0.8)
    """Brightness of the second sublattice, as a share of that of the first."""
    strain: float = 0.01
    """Deviation of the local strain."""
    edges: float = 0.25
    """Probability that an image shows the edge of the crystal, with vacuum beyond."""
    boundaries: float = 0.25
    """Probability that it shows a boundary between two grains instead."""
    vacancies: float = 0.01
    """Share of the columns that are missing."""
    unequal: float = 0.06
    """Deviation of the brightness from column to column, as a share of it."""

    def __post_init__(self) -> None:
        check_image(self.size_px, self.seed)
        if self.lattice not in ("any", *get_args(Bravais)):
            raise ValueError(
                f"lattice is {self.lattice!r}; wanted any, {', '.join(get_args(Bravais))}"
            )
        check_numbers(
            self,
            pixel_nm=(1e-4, 1),
            spacing_nm=(0.01, 100),
            column_nm=(1e-3, 10),
            second=(0, 1),
            strain=(0, 0.05),
            edges=(0, 1),
            boundaries=(0, 1),
            vacancies=(0, 0.5),
            unequal=(0, 0.3),
        )
        if self.edges + self.boundaries > 1:
            raise ValueError(
                "edges + boundaries must be at most 1 (an image shows one of them), got "
                f"{self.edges} + {self.boundaries}; lower one"
            )
        nearest = self.spacing_nm[0] * min(
            cell.nearest for name, cell in CELLS.items() if self.lattice in ("any", name)
        )
        if not 0.8 * self.pixel_nm <= self.column_nm <= nearest / 3:
            raise ValueError(
                f"column_nm must lie between 0.8 pixels and a third of the distance of neighbours, "
                f"{0.8 * self.pixel_nm:g} to {nearest / 3:.3g} nm, got {self.column_nm:g}; change it, "
                "pixel_nm or spacing_nm"
            )
        if math.prod(self.size_px) * (self.pixel_nm / nearest) ** 2 > 2**15:
            raise ValueError(
                f"images of {self.size_px} pixels hold more columns than 16 bits can number; lower "
                "size_px or pixel_nm"
            )


@dataclass(frozen=True, kw_only=True)
class LatticeImage:
    """An image without noise, and its truth."""

    image: Float
    """(Y, X) in [0, 1]"""
    columns: NDArray[np.uint16]
    """(Y, X): number of the column in small discs, 0 elsewhere; row + 1 of the tables below."""
    positions_px: Double
    """(N, 2): (y, x) of the columns within the image, in pixels from the centre of the first one."""
    sublattices: NDArray[np.uint8]
    """(N,): 1 or 2."""


class Columns(NamedTuple):
    """Columns of a crystal, a row each."""

    at_px: Double  # (N, 2)
    sublattice: NDArray[np.uint8]  # (N,)
    key: NDArray[np.int64]  # (N, 4): grain, cell, place in the cell: for their random numbers

    def take(self, keep: NDArray[np.bool_]) -> Columns:
        return Columns(self.at_px[keep], self.sublattice[keep], self.key[keep])


def render_lattice(config: LatticeConfig, index: int) -> LatticeImage:
    """Image `index` of the collection and where its columns are.

    >>> one = render_lattice(LatticeConfig(size_px=(64, 64)), 0)
    >>> one.image.shape, len(one.positions_px) == int(one.columns.max())
    ((64, 64), True)
    """
    check_index(index)
    seed = config.seed
    draws = hash_uniform(seed, "crystal", index, np.arange(8)).tolist()
    known: tuple[str, ...] = get_args(Bravais) if config.lattice == "any" else (config.lattice,)
    cell = CELLS[known[int(draws[0] * len(known))]]
    spacing = _within(config.spacing_nm, draws[1]) / config.pixel_nm
    width = config.column_nm / config.pixel_nm

    # A line through the inner half of the image, and the distance of places beyond it.
    middle = [n * (0.25 + 0.5 * draw) for n, draw in zip(config.size_px, draws[2:4], strict=True)]
    angle = 2 * math.pi * draws[4]

    def beyond(at: Double) -> Double:  # (N, 2) -> (N,)
        y, x = (at - middle).T
        return math.sin(angle) * y + math.cos(angle) * x

    columns = _crystal(config, index, cell, spacing, grain=0)
    depth = np.full(len(columns.at_px), np.inf)  # below the edge, in spacings
    if draws[5] < config.edges:
        y, x = columns.at_px.T
        ragged = spacing * np.sin(x / (2.3 * spacing) + 9 * draws[6]) * np.sin(y / (1.9 * spacing))
        depth = (beyond(columns.at_px) + ragged) / spacing
        columns, depth = columns.take(depth > 0), depth[depth > 0]
    elif draws[5] < config.edges + config.boundaries:
        columns = _joined(
            columns.take(beyond(columns.at_px) > 0),
            _crystal(config, index, cell, spacing, grain=1),
            beyond,
            0.75 * cell.nearest * spacing,
        )
        depth = np.full(len(columns.at_px), np.inf)
    missing: NDArray[np.bool_] = (
        hash_uniform(seed, "vacancy", index, *columns.key.T) < config.vacancies
    )
    columns, depth = columns.take(~missing), depth[~missing]

    bright = _brightness(config, index, columns, depth, spacing)
    image = _drawn(config.size_px, columns.at_px, bright, width)
    # 1 in the middle of a bright crystal: electrons that columns scatter far.
    density = len(cell.motif) / abs(np.linalg.det(cell.vectors))
    haze = _drawn(config.size_px, columns.at_px, bright, HAZE * spacing)
    haze /= 2 * math.pi * HAZE**2 * density
    levels = hash_uniform(seed, "levels", index, np.arange(3)).tolist()
    image *= 0.45 + 0.25 * levels[0]
    image += 0.03 + 0.05 * levels[1] + (0.06 + 0.12 * levels[2]) * haze

    y, x = columns.at_px.T
    height, across = config.size_px
    seen = columns.take((y >= -0.5) & (x >= -0.5) & (y < height - 0.5) & (x < across - 0.5))
    return LatticeImage(
        image=np.clip(image, 0, 1).astype(np.float32),
        columns=_discs(config.size_px, seen.at_px, DISC * width),
        positions_px=seen.at_px,
        sublattices=seen.sublattice,
    )


def _crystal(
    config: LatticeConfig, index: int, cell: Cell, spacing: float, *, grain: int
) -> Columns:
    """The columns of a grain that would fill the image, strained, from a bit beyond its borders on."""
    draws = hash_uniform(config.seed, "grain", index, grain, np.arange(2)).tolist()
    turns = hash_uniform(config.seed, "turn", index, np.arange(2)).tolist()
    # Grains differ by an angle that can be seen.
    angle = 2 * math.pi * (turns[0] + grain * (0.12 + 0.76 * turns[1]) / cell.fold)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    vectors = spacing * np.array(cell.vectors) @ turn  # (2, 2): rows are (y, x) in pixels
    size = np.array(config.size_px)
    most = math.ceil(1.3 * (np.hypot(*size) / 2 / spacing + 4))
    steps = np.arange(-most, most + 1)
    first, second, place = (
        axis.ravel()
        for axis in np.meshgrid(steps, steps, np.arange(len(cell.motif)), indexing="ij")
    )
    motif = np.array(cell.motif)[place]
    shares = np.stack([first, second], 1) + motif[:, :2] + draws
    at = shares @ vectors + size / 2
    at += _strain(config, index, at, spacing)
    rim = 3 * spacing
    near = ((at > -rim) & (at < size + rim)).all(1)
    key = np.stack([np.full_like(first, grain), first, second, place], 1)
    return Columns(at, motif[:, 2].astype(np.uint8), key).take(near)


def _strain(config: LatticeConfig, index: int, at: Double, spacing: float) -> Double:  # (N, 2)
    """Displacements whose slope has the deviation that is asked for."""
    pitch = BEND * spacing
    margin = math.ceil(4 * spacing)
    size = [n + 2 * margin for n in config.size_px]
    rows, columns = np.clip(np.rint(at).astype(int) + margin, 0, np.array(size) - 1).T
    reach = config.strain * pitch / NOISE_SLOPE
    moved = [
        reach * smooth_image(config.seed, f"strain {axis}", index, size, pitch)[rows, columns]
        for axis in "yx"
    ]
    return np.stack(moved, 1).astype(np.float64)


def _joined(
    one: Columns, other: Columns, beyond: Callable[[Double], Double], apart: float
) -> Columns:
    """Two grains on the two sides of a line, without columns of the second that are too near."""
    other = other.take(beyond(other.at_px) <= 0)
    border = one.at_px[beyond(one.at_px) < 2 * apart]
    away = np.hypot(*(other.at_px[:, None] - border).transpose(2, 0, 1))  # (N, border)
    other = other.take(np.asarray(away.min(1, initial=np.inf) > apart))
    return Columns(
        np.concatenate([one.at_px, other.at_px]),
        np.concatenate([one.sublattice, other.sublattice]),
        np.concatenate([one.key, other.key]),
    )


def _brightness(
    config: LatticeConfig, index: int, columns: Columns, depth: Double, spacing: float
) -> Double:
    """Of each column: by its sublattice, how thick the crystal is there, and by itself."""
    second = _within(config.second, hash_uniform(config.seed, "second", index).item())
    bright = np.where(columns.sublattice == 2, second, 1.0)
    bright *= np.clip(0.45 + depth / 10, 0, 1)  # a crystal is thin at its edge
    uneven = smooth_image(config.seed, "thick", index, config.size_px, 2 * BEND * spacing)
    rows, across = np.clip(np.rint(columns.at_px).astype(int), 0, np.array(config.size_px) - 1).T
    bright *= 1 + 0.05 * uneven[rows, across]
    own = hash_normal(config.seed, "bright", index, *columns.key.T)
    return np.maximum(bright * (1 + config.unequal * own), 0)


def _drawn(size: tuple[int, int], at: Double, bright: Double, width: float) -> Double:  # (Y, X)
    """The sum of Gaussians of one width."""
    margin = math.ceil(REACH * width) + 1
    steps = np.arange(-margin + 1, margin)
    canvas = np.zeros([n + 4 * margin for n in size])
    near = ((at > -margin) & (at < np.array(size) + margin - 1)).all(1)
    at, bright = at[near], bright[near]
    base = np.rint(at).astype(int)
    # (N, window) along y, then x
    y, x = (
        np.exp(-0.5 * ((base[:, k, None] + steps - at[:, k, None]) / width) ** 2) for k in (0, 1)
    )
    rows, across = (base[:, k, None] + steps + 2 * margin for k in (0, 1))
    spots = bright[:, None, None] * y[:, :, None] * x[:, None, :]
    np.add.at(canvas, (rows[:, :, None], across[:, None, :]), spots)
    return canvas[2 * margin : 2 * margin + size[0], 2 * margin : 2 * margin + size[1]]


def _discs(size: tuple[int, int], at: Double, radius: float) -> NDArray[np.uint16]:  # (Y, X)
    """Numbers of columns from 1 on where a pixel lies near one."""
    labels = np.zeros(size, np.uint16)
    for number, (y, x) in enumerate(at.tolist(), 1):
        y0, x0 = max(0, math.ceil(y - radius)), max(0, math.ceil(x - radius))
        part = labels[y0 : math.floor(y + radius) + 1, x0 : math.floor(x + radius) + 1]
        rows, across = np.ogrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
        part[(rows - y) ** 2 + (across - x) ** 2 <= radius**2] = number
    return labels


def _within(limits: Range, share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])

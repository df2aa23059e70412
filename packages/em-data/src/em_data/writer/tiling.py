"""Run a model over a volume of any size, tile by tile, so that nobody can see where the tiles met.

Tiles lie on a grid that begins at the volume's first voxel and is aligned to the model's stride. What
is asked for at once, a block, does not move them: a block computes every tile that reaches into it,
and each voxel adds up the same tiles in the same order whatever the block. So block sizes, processes
and interruptions change no bit.

Where the halo covers all that the model looks at, tiles without overlap are exact. A model that pads
its input is wrong near the border of its tile: there, overlapping tiles are blended. Beyond its
borders the volume is mirrored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, int3
from em_data.volume import Volume

# Raw tiles as stored (B, Z, Y, X), of the grid's `input_vx` -> (B, C, z, y, x), of its `tile_vx`, or of
# its `input_vx`, whose halo is then cut off.
Model = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """How a volume is cut for a model.

    A 2D model takes tiles of one slice, one with slices as context has a halo along z, a 3D model
    takes tiles of several slices.
    """

    tile_vx: Int3
    """Voxels along (z, y, x) that one run of the model yields."""
    halo_vx: Int3 = (0, 0, 0)
    """Voxels on either side that the model sees besides; as many as its margin make tiles exact."""
    overlap_vx: Int3 = (0, 0, 0)
    """Voxels that neighbouring tiles share and blend; 0 for models that need no blending."""
    blend: Literal["cosine", "bump"] = "cosine"
    """How the weight of a tile rises over the overlap: as a cosine, or infinitely smooth."""
    stride_vx: Int3 = (1, 1, 1)
    """Product of the model's strides; tiles are that far apart, or a multiple of it."""
    batch: int = 1
    """Tiles of one run, neighbours along z: always the same ones together, and always so many."""

    def __post_init__(self) -> None:
        for axis, t, h, o, s in zip(
            "zyx", self.tile_vx, self.halo_vx, self.overlap_vx, self.stride_vx, strict=True
        ):
            if t < 1 or h < 0 or s < 1:
                raise BoxError(
                    f"tile {self.tile_vx}, halo {self.halo_vx} and stride {self.stride_vx} are not "
                    f"sizes on {axis}; wanted tile ≥ 1, halo ≥ 0, stride ≥ 1"
                )
            if not 0 <= o < t:
                raise BoxError(
                    f"overlap {self.overlap_vx} on {axis}; wanted 0 or more, and less than the tile "
                    f"{self.tile_vx}"
                )
            if t > o and (t - o) % s:
                raise BoxError(
                    f"tiles of {self.tile_vx} with overlap {self.overlap_vx} are {t - o} voxels apart "
                    f"on {axis}; wanted a multiple of the model's stride, {s}"
                )
        if self.batch < 1:
            raise BoxError(f"batch is {self.batch}; wanted at least 1 tile")

    @property
    def input_vx(self) -> Int3:
        """What the model is given for one tile."""
        return int3([t + 2 * h for t, h in zip(self.tile_vx, self.halo_vx, strict=True)])

    @property
    def step_vx(self) -> Int3:
        """How far tiles are apart."""
        return int3([t - o for t, o in zip(self.tile_vx, self.overlap_vx, strict=True)])

    def count(self, shape: Int3) -> Int3:
        """Tiles along each axis of a volume; the last ones may reach beyond it.

        >>> TileGrid(tile_vx=(1, 64, 64), overlap_vx=(0, 16, 16)).count((5, 64, 65))
        (5, 1, 2)
        """
        counts = zip(shape, self.overlap_vx, self.step_vx, strict=True)
        return int3([max(1, -(-(n - o) // step)) for n, o, step in counts])

    def weights(self, axis: int, index: int, count: int) -> np.ndarray:
        """The weight of each voxel of a tile along one axis; those of all tiles add up to one.

        >>> grid = TileGrid(tile_vx=(1, 4, 4), overlap_vx=(0, 2, 2))
        >>> grid.weights(1, 0, 3).astype(float).round(3).tolist()
        [1.0, 1.0, 0.854, 0.146]
        """
        tile, step = self.tile_vx[axis], self.step_vx[axis]
        own = self._rise(axis)
        total = np.zeros(tile)
        reach = -(-tile // step) - 1  # neighbours that share voxels with this tile
        for other in range(max(0, index - reach), min(count, index + reach + 1)):
            shift = (index - other) * step  # where this tile begins in the other one
            a, b = max(0, -shift), min(tile, tile - shift)
            total[a:b] += own[a + shift : b + shift]
        return (own / total).astype(np.float32)

    def _rise(self, axis: int) -> np.ndarray:
        """Weights before they are made to add up to one: rising, flat, falling."""
        tile, overlap = self.tile_vx[axis], self.overlap_vx[axis]
        t = (np.arange(overlap) + 0.5) / max(overlap, 1)  # in (0, 1), symmetric
        if self.blend == "cosine":
            rise = np.sin(np.pi / 2 * t) ** 2
        else:
            # exp overflows at 710; weights stay above 0, for that of a lone tile is divided by itself.
            rise = 1 / (1 + np.exp(np.minimum(1 / t - 1 / (1 - t), 600)))
        weights = np.ones(tile)
        weights[:overlap] *= rise
        weights[tile - overlap :] *= rise[::-1]
        return weights

    def groups(self, shape: Int3, box: Box) -> Iterator[list[Int3]]:
        """The tiles that reach into `box`, in runs of `batch`, in an order that is always the same."""
        (z0, z1), (y0, y1), (x0, x1) = self._touching(shape, box)
        for first in range(z0 // self.batch * self.batch, z1, self.batch):
            for y, x in itertools.product(range(y0, y1), range(x0, x1)):
                yield [(z, y, x) for z in range(first, first + self.batch)]

    def source(self, shape: Int3, box: Box) -> Box:
        """All that is read for `box`; it may begin before the volume and end behind it."""
        (z0, z1), *rest = self._touching(shape, box)
        ranges = [(z0 // self.batch * self.batch, -(-z1 // self.batch) * self.batch), *rest]
        origin = [
            a * step - h for (a, _), step, h in zip(ranges, self.step_vx, self.halo_vx, strict=True)
        ]
        size = [
            (b - 1 - a) * step + i
            for (a, b), step, i in zip(ranges, self.step_vx, self.input_vx, strict=True)
        ]
        return Box(int3(origin), int3(size))

    def _touching(self, shape: Int3, box: Box) -> list[tuple[int, int]]:
        """The range of tiles along each axis that share a voxel with `box`."""
        ranges = []
        for o, s, tile, step, count in zip(
            box.origin_vx, box.size_vx, self.tile_vx, self.step_vx, self.count(shape), strict=True
        ):
            ranges.append((max(0, (o - tile) // step + 1), min(count, (o + s - 1) // step + 1)))
        return ranges


def predict_block(volume: Volume, model: Model, grid: TileGrid, box: Box) -> np.ndarray:
    """What a model says about every voxel of `box`: (C, z, y, x) float32.

    The same, bit for bit, for every way to cut a volume into boxes, as long as the model gives the
    same for the same batch.
    """
    counts = grid.count(volume.shape)
    source = grid.source(volume.shape, box)
    raw = read_mirrored(volume, source)  # everything at once: no chunk is decoded twice
    weights = [
        {k: grid.weights(axis, k, counts[axis]) for k in range(*touching)}
        for axis, touching in enumerate(grid._touching(volume.shape, box))
    ]
    whole: np.ndarray | None = None
    for group in grid.groups(volume.shape, box):
        starts = [
            int3([k * step - h - o for k, step, h, o in places])
            for places in (
                zip(tile, grid.step_vx, grid.halo_vx, source.origin_vx, strict=True)
                for tile in group
            )
        ]
        out = _run(model, np.stack([raw[Box(at, grid.input_vx).slices] for at in starts]), grid)
        if whole is None:
            whole = np.zeros((out.shape[1], *box.size_vx), np.float32)
        for tile, values in zip(group, out, strict=True):
            if tile[0] in weights[0]:  # others only fill the batch
                _add(whole, values, tile, weights, grid, box)
    assert whole is not None  # every voxel lies in a tile
    return whole


def _run(model: Model, tiles: np.ndarray, grid: TileGrid) -> np.ndarray:
    """One run of the model: (B, Z, Y, X) -> (B, C, z, y, x) float32."""
    out = np.asarray(model(tiles))
    size = out.shape[2:]
    if out.ndim != 5 or len(out) != len(tiles) or size not in (grid.tile_vx, grid.input_vx):
        raise ValueError(
            f"the model gave {out.shape} for tiles {tiles.shape}; wanted (B, C, z, y, x) with "
            f"(z, y, x) = {grid.tile_vx}, or {grid.input_vx} to have the halo cut off"
        )
    if size != grid.tile_vx:
        out = out[(..., *Box(grid.halo_vx, grid.tile_vx).slices)]
    check_finite(out, tiles)
    return out.astype(np.float32, copy=False)


def check_finite(out: np.ndarray, tiles: np.ndarray) -> None:
    """Refuse values of a model that are not finite, and say whether the raw tiles are to blame."""
    if np.isfinite(out).all():
        return
    if not np.isfinite(tiles).all():
        raise FloatingPointError(
            "the volume has voxels that are NaN or infinite, so the model says nothing about what "
            "lies around them; give them finite values, or take a part of the volume without them"
        )
    raise FloatingPointError(
        "the model gave values that are not finite; look at its weights, or predict in float32"
    )


def _add(
    whole: np.ndarray,
    values: np.ndarray,
    tile: Int3,
    weights: list[dict[int, np.ndarray]],
    grid: TileGrid,
    box: Box,
) -> None:
    """Add the part of a tile that lies in `box` to what is there: (C, z, y, x)."""
    target, part, factors = [], [], []
    for axis, (k, step, size, o, s) in enumerate(
        zip(tile, grid.step_vx, grid.tile_vx, box.origin_vx, box.size_vx, strict=True)
    ):
        low, high = max(k * step, o), min(k * step + size, o + s)
        target.append(slice(low - o, high - o))
        part.append(slice(low - k * step, high - k * step))
        factors.append(weights[axis][k][part[-1]])
    inside = values[(slice(None), *part)]
    if any(grid.overlap_vx):
        wz, wy, wx = factors
        inside = inside * (wz[:, None, None] * wy[:, None] * wx)
    whole[(slice(None), *target)] += inside


def read_mirrored(volume: Volume, box: Box) -> np.ndarray:
    """Voxels of a box that may leave the volume, mirrored at its outermost voxels.

    >>> from em_data import open_volume
    >>> line = open_volume(np.arange(4, dtype=np.uint8).reshape(1, 1, 4))
    >>> read_mirrored(line, Box((0, 0, -2), (1, 1, 8)))[0, 0].tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    indices = [
        _mirrored(o, s, n) for o, s, n in zip(box.origin_vx, box.size_vx, volume.shape, strict=True)
    ]
    origin = [int(index.min()) for index in indices]
    size = [int(index.max()) - o + 1 for index, o in zip(indices, origin, strict=True)]
    voxels = volume.read(Box(int3(origin), int3(size)))
    for axis, (index, o) in enumerate(zip(indices, origin, strict=True)):
        if len(index) != voxels.shape[axis] or index[0] != o:
            voxels = voxels.take(index - o, axis)
    return voxels


def _mirrored(start: int, size: int, n: int) -> np.ndarray:
    """Places start … start + size − 1, reflected into 0 … n − 1 as often as it takes."""
    if n == 1:
        return np.zeros(size, int)
    places = np.arange(start, start + size) % (2 * n - 2)
    return np.minimum(places, 2 * n - 2 - places)


def as_uint8(values: np.ndarray) -> np.ndarray:
    """Probabilities in [0, 1] as bytes, slice by slice, so that nothing large is copied.

    >>> as_uint8(np.array([[0, 0.5, 1]], np.float32)).tolist()
    [[0, 128, 255]]
    """
    out = np.empty(values.shape, np.uint8)
    for place in np.ndindex(values.shape[:-2]):
        out[place] = np.rint(values[place].clip(0, 1) * 255)
    return out


def as_classes(values: np.ndarray) -> np.ndarray:
    """The channel with the largest value of each voxel, (C, z, y, x) -> (z, y, x) uint8.

    >>> as_classes(np.array([[[[0.2, 0.9]]], [[[0.8, 0.1]]]])).tolist()
    [[[1, 0]]]
    """
    if len(values) > 256:
        raise ValueError(f"{len(values)} channels; bytes name no more than 256 classes")
    out = np.empty(values.shape[1:], np.uint8)
    for z in range(len(out)):
        out[z] = values[:, z].argmax(0)
    return out


# Plans -------------------------------------------------------------------------------------------

"""Which grey values a volume really uses, so that what is learned on one can be used on another.

A camera with 12 bits stores its values in 16: divided by 65535 they would all be black. The range is
measured on a few boxes spread over the volume, the same ones every time, each within one chunk, so that
few chunks are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from em_data.geometry import Box, int3, tiles
from em_data.volume import Volume

BOXES = 48
BOX_VX = (8, 128, 128)  # at most, for chunks may be whole slices
MOST_VX = 2**20  # that count of a picture
IN_FLIGHT = 16  # reads at a time, for volumes on servers
OUTSIDE_PERCENT = 0.5  # of the values on each side: dust and dead pixels


@dataclass(frozen=True)
class GreyRange:
    """The values that become 0 and 1."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """stored · scale + shift is in [0, 1] for values in the range."""
        return 1 / (self.high - self.low)

    @property
    def shift(self) -> float:
        """See `scale`."""
        return -self.low * self.scale

    def unit(self, voxels: np.ndarray, *, clip: bool = True) -> np.ndarray:
        """Stored values as float32 in [0, 1]; what lies outside the range is clipped, if asked to.

        >>> GreyRange(100, 200).unit(np.array([50, 100, 150], np.uint8)).tolist()
        [0.0, 0.0, 0.5]
        """
        found = voxels.astype(np.float32) * np.float32(self.scale) + np.float32(self.shift)
        if clip:
            found = np.clip(found, 0, 1)
        # What is no number is shown as black, like the slices that a microscope has lost.
        return np.nan_to_num(found, copy=False) if voxels.dtype.kind == "f" else found


def grey_range(volume: Volume) -> GreyRange:
    """The range of a volume without the outermost half percent on either side.

    Slices of one value, as missing ones are, do not count.
    """
    decoded = volume.shape[0] == 1 and volume.chunk_vx == volume.shape
    if decoded or volume.format == "image":  # a picture, in memory or decoded whole
        return range_of([volume.read(Box((0, 0, 0), volume.shape))])
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return range_of(list(pool.map(volume.read, _boxes(volume))))


def range_of(boxes: Sequence[np.ndarray]) -> GreyRange:
    """The same of voxels (z, y, x) that are there; of large pictures a part of the pixels counts."""
    boxes = [box[:, :: (step := _thinned(box)), ::step] for box in boxes]
    planes = [box[box.min(axis=(1, 2)) != box.max(axis=(1, 2))] for box in boxes]
    values = np.concatenate([plane.ravel() for plane in planes])
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not len(values):
        return GreyRange(0.0, 1.0)
    low, high = _percentiles(values, [OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT])
    return GreyRange(low, high if high > low else low + 1)


def nan_share(volume: Volume) -> float:
    """Share of the voxels that are NaN or infinite: of all in memory, else of those that tell the range.

    >>> from em_data import open_volume
    >>> nan_share(open_volume(np.array([[[1, 2, 3, np.nan]]], np.float32)))
    0.25
    """
    if volume.dtype.kind != "f":
        return 0.0
    boxes = _boxes(volume)
    if isinstance(volume.array, np.ndarray):
        boxes = list(tiles(volume.shape, (1, *volume.shape[1:])))
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        finite = pool.map(lambda box: np.count_nonzero(np.isfinite(volume.read(box))), boxes)
        return 1 - int(sum(finite)) / sum(math.prod(box.size_vx) for box in boxes)


def _thinned(box: np.ndarray) -> int:
    """How far pixels are apart that count."""
    return math.ceil(math.sqrt(box.size / MOST_VX))


def _percentiles(values: np.ndarray, percents: list[float]) -> list[float]:
    if values.dtype.kind not in "iu" or values.itemsize > 2:
        return np.percentile(values.astype(np.float32), percents).tolist()
    # Few values are possible: counting them takes a fifth of the time of putting them in order.
    least = int(np.iinfo(values.dtype).min)
    ends = np.cumsum(np.bincount(values.astype(np.int64) - least))
    places = np.array(percents) / 100 * (len(values) - 1)
    low, high = (np.searchsorted(ends, np.floor(places) + after, side="right") for after in (0, 1))
    return (low + (high - low) * (places % 1) + least).tolist()


def _boxes(volume: Volume) -> list[Box]:
    """Boxes at random voxels, no two alike: what of each voxel's chunk lies next to it."""
    rng = np.random.default_rng(0)
    chunk = volume.chunk_vx or BOX_VX
    found: dict[Box, None] = {}
    for _ in range(BOXES):
        origin, size = [], []
        for n, c, most in zip(volume.shape, chunk, BOX_VX, strict=True):
            voxel = int(rng.integers(n))
            start = voxel // c * c  # of the chunk
            stop = min(start + c, n)
            size.append(min(most, stop - start))
            origin.append(min(max(voxel - most // 2, start), stop - size[-1]))
        found[Box(int3(origin), int3(size))] = None
    return list(found)

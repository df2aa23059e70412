"""Which grey values a volume really uses, so that what is learned on one can be used on another.

A camera with 12 bits stores its values in 16: divided by 65535 they would all be black. The range is
measured on a few boxes spread over the volume, the same ones every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from em_data.geometry import Box, int3
from em_data.volume import Volume

BOXES = 16
BOX_VX = (2, 192, 192)
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

    def unit(self, voxels: np.ndarray) -> np.ndarray:
        """Stored values as float32 in [0, 1]; what lies outside the range is clipped.

        >>> GreyRange(100, 200).unit(np.array([50, 100, 150], np.uint8)).tolist()
        [0.0, 0.0, 0.5]
        """
        return np.clip(voxels.astype(np.float32) * self.scale + self.shift, 0, 1)


def grey_range(volume: Volume) -> GreyRange:
    """The range of a volume without the outermost half percent on either side.

    Slices of one value, as missing ones are, do not count.
    """
    rng = np.random.default_rng(0)
    size = int3([min(s, n) for s, n in zip(BOX_VX, volume.shape, strict=True)])
    values = []
    for _ in range(BOXES):
        room = [n - s + 1 for n, s in zip(volume.shape, size, strict=True)]
        voxels = volume.read(Box(int3([int(rng.integers(n)) for n in room]), size))
        values += [plane[np.isfinite(plane)] for plane in voxels if plane.min() != plane.max()]
    if not values:
        return GreyRange(0.0, 1.0)
    low, high = np.percentile(
        np.concatenate(values).astype(np.float32), [OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT]
    )
    return GreyRange(float(low), float(high) if high > low else float(low) + 1)

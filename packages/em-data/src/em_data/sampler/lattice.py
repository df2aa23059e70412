"""Origins of the crops of a block, spread evenly over it instead of drawn one by one.

Independent places in a block repeat themselves by chance. The points of a lattice keep their
distance, and with a random shift each of them is at every place equally often: as uniform as
independent places, with far fewer near-duplicates. See rank-1 lattices, Sloan & Joe 1994.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from em_data.geometry import Int3

OVERLAP = 0.5  # of the voxels of a crop: more is a near-duplicate
TRIED = 32  # generators of each order of the axes


class Lattice(NamedTuple):
    """The points i · generator / points, modulo 1, of the unit cube."""

    points: int
    generator: Int3
    near: float  # points that make near-duplicates with a given one, on average

    def places(self, random: np.random.Generator, origins_vx: Int3) -> np.ndarray:
        """The points in a random order, shifted at random, as voxels of a box: (points, 3)."""
        order = random.permutation(self.points)[:, None]
        unit = order * np.array(self.generator) % self.points / self.points + random.random(3)
        return np.minimum((unit % 1 * origins_vx).astype(np.int64), np.array(origins_vx) - 1)


@lru_cache(maxsize=4096)
def lattice(count: int, origins_vx: Int3, crop_vx: Int3) -> Lattice:
    """The lattice of so many points whose crops have least in common, among some.

    >>> lattice(27, (128, 128, 128), (64, 64, 64)).near
    0.0
    """
    steps = np.unique(np.linspace(1, max(1, count - 1), TRIED).round().astype(int))
    korobov = np.stack([np.ones_like(steps), steps, steps**2 % count], axis=1)
    generators = np.concatenate([np.roll(korobov, axis, axis=1) for axis in range(3)])  # (G, 3)
    apart = (
        np.arange(1, count)[None, :, None] * generators[:, None] % count / count
    )  # (G, N − 1, 3)
    near = np.zeros(len(generators))
    # A point that leaves the cube comes in again at the other side: likely apart by d, or by 1 − d.
    for wrapped in itertools.product((False, True), repeat=3):
        likely = np.where(wrapped, apart, 1 - apart).prod(2)
        voxels = np.floor(np.where(wrapped, 1 - apart, apart) * origins_vx)  # the nearest they get
        common = np.clip(1 - voxels / crop_vx, 0, None).prod(2)
        near += (likely * (common > OVERLAP)).sum(1)
    best = int(near.argmin())
    z, y, x = generators[best].tolist()
    return Lattice(count, (z, y, x), float(near[best]))

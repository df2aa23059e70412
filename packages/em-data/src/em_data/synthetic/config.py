"""The settings of a synthetic volume, what follows from them alone, and checks of settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]
Range = tuple[float, float]


BODY_PITCH = 7.0  # between nuclei, as multiples of their radius
SEED_PITCH = 1.1  # between cells, as multiples of their size
MARGIN = 16  # lattice cells around the volume that are numbered too


def largest_number(config: SyntheticConfig) -> int:
    """A bound for the numbers of the cells of a volume."""
    pitches = (BODY_PITCH * config.nucleus_radius_nm, SEED_PITCH * config.cell_size_nm)
    return max(2 * math.prod(lattice_shape(config, pitch).tolist()) for pitch in pitches)


def lattice_shape(config: SyntheticConfig, pitch_nm: float) -> Whole:
    """How many lattice places per axis can matter to the volume."""
    extent = np.array(config.shape_vx) * np.array(config.voxel_size_nm)
    return np.ceil(extent / pitch_nm).astype(np.int64) + 2 * MARGIN


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """A synthetic volume of nerve tissue and how it is imaged."""

    shape_vx: tuple[int, int, int] = (64, 384, 384)
    """Size of the whole volume (z, y, x) in voxels; another size is other tissue."""
    voxel_size_nm: tuple[float, float, float] = (17.6, 8.0, 8.0)
    """Size of a voxel (z, y, x) in nm; the tissue keeps its physical size whatever it is."""
    seed: int = 0
    """Seed of the tissue: 0 to 2**32 - 1."""
    cell_size_nm: float = 450.0
    """Typical width of a cell process in nm; real neuropil has about 200 to 1000."""
    membrane_nm: float = 36.0
    """Thickness in nm of two facing plasma membranes with the gap between them."""
    irregularity: float = 1.0
    """Bending of the cells: 0 gives straight tubes, 2 is the most."""
    nucleus_radius_nm: float = 640.0
    """Mean radius of a nucleus in nm; its cell body is about a third wider."""
    mitochondria: float = 0.42
    """Probability that a stretch of about 1 µm of a process holds a mitochondrion."""
    vesicles: float = 0.25
    """Probability that such a stretch holds a cloud of vesicles instead."""
    microtubules: float = 0.7
    """Share of the processes that hold a bundle of microtubules."""
    blur_nm: float = 5.0
    """Deviation in nm of the Gaussian blur within slices."""
    noise: float = 0.07
    """Deviation of the noise of one voxel, as a share of the grey range."""
    contrast_drift: float = 0.03
    """Deviation of brightness and contrast from slice to slice, as a share of the grey range."""
    defects: float = 0.0
    """Probability that a slice is damaged: missing (black), shifted within its plane, or dark."""

    def __post_init__(self) -> None:
        check_triple("shape_vx", self.shape_vx, whole=True, least=1)
        check_triple("voxel_size_nm", self.voxel_size_nm, whole=False, least=0.1)
        if not (isinstance(self.seed, int | np.integer) and 0 <= self.seed < 2**32):
            raise ValueError(
                f"seed must be a whole number from 0 to 2**32 - 1, got {self.seed}; choose another"
            )
        for name, low, high in (
            ("cell_size_nm", 60, 20_000),
            ("membrane_nm", 10, 100),
            ("irregularity", 0, 2),
            ("nucleus_radius_nm", 200, 10_000),
            ("mitochondria", 0, 1),
            ("vesicles", 0, 1),
            ("microtubules", 0, 1),
            ("blur_nm", 0, 100),
            ("noise", 0, 1),
            ("contrast_drift", 0, 1),
            ("defects", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low} to {high}, got {value}; change it")
        if self.mitochondria + self.vesicles > 1:
            raise ValueError(
                "mitochondria + vesicles must be at most 1 (they share the stretches of a "
                f"process), got {self.mitochondria} + {self.vesicles}; lower one"
            )
        smallest = max(6 * self.membrane_nm, 4 * max(self.voxel_size_nm))
        if self.cell_size_nm < smallest:
            raise ValueError(
                f"cell_size_nm must be at least {smallest:g} (6 membranes and 4 voxels), "
                f"got {self.cell_size_nm:g}; enlarge the cells, or lower membrane_nm or voxel_size_nm"
            )
        if self.nucleus_radius_nm < self.cell_size_nm / 2:
            raise ValueError(
                f"nucleus_radius_nm must be at least half of cell_size_nm {self.cell_size_nm:g}, "
                f"got {self.nucleus_radius_nm:g}; enlarge it"
            )
        if largest_number(self) >= 2**32:
            raise ValueError(
                f"a volume of {self.shape_vx} voxels holds more than 2**32 cells of "
                f"{self.cell_size_nm:g} nm, too many to number; lower shape_vx"
            )


def check_triple(name: str, values: Sequence[float], *, whole: bool, least: float) -> None:
    """Refuse anything but three finite numbers from `least` on, whole ones where asked."""
    good = len(values) == 3 and all(
        math.isfinite(value) and value >= least and (not whole or value == int(value))
        for value in values
    )
    if not good:
        kind = "whole numbers" if whole else "numbers"
        raise ValueError(
            f"{name} must be three {kind} (z, y, x) of at least {least:g}, "
            f"got {tuple(values)}; correct it"
        )


def check_image(size_px: tuple[int, int], seed: int) -> None:
    """Refuse sizes and seeds that no image can have."""
    if len(size_px) != 2 or any(n != int(n) or not 32 <= n <= 8192 for n in size_px):
        raise ValueError(
            f"size_px must be two whole numbers (y, x) from 32 to 8192, got {tuple(size_px)}; change it"
        )
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**32):
        raise ValueError(
            f"seed must be a whole number from 0 to 2**32 - 1, got {seed}; choose another"
        )


def check_index(index: int) -> None:
    """Refuse what is no number of an image."""
    if not 0 <= index < 2**31:
        raise ValueError(f"index must be a number of an image from 0 on, got {index}; count from 0")


def check_numbers(config: object, **limits: Range) -> None:
    """Refuse numbers, and ranges (low, high), beyond their limits."""
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if isinstance(value, tuple | list):
            good = len(value) == 2 and least <= value[0] <= value[1] <= most
            wanted = f"a range (low, high) within {least:g} to {most:g}"
        else:
            good, wanted = least <= value <= most, f"{least:g} to {most:g}"
        if not good:
            raise ValueError(f"{name} is {value}; wanted {wanted}; change it")

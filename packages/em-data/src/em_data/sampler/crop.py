"""The shapes of crops, and where one lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from em_data.errors import BoxError
from em_data.geometry import Box, Int3
from em_data.sampler.randomness import Key


class Sample(NamedTuple):
    """Where a sample lies: a box of one volume."""

    volume: int
    box: Box
    key: Key


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Stacks of slices around a target slice."""

    size_vx: int = 113
    """Side of the square window, in voxels."""
    offsets_z: tuple[int, ...] = (-2, -1, 0, 1, 2)
    """Slices of a stack relative to the target slice, ascending; 0 is the target."""

    def __post_init__(self) -> None:
        if self.size_vx < 1:
            raise BoxError(f"size_vx is {self.size_vx}; wanted at least 1 voxel")
        if 0 not in self.offsets_z or list(self.offsets_z) != sorted(set(self.offsets_z)):
            raise BoxError(
                f"offsets_z is {self.offsets_z}; wanted ascending slices with the target, 0, "
                "among them, for instance (-2, -1, 0, 1, 2)"
            )

    @property
    def crop_vx(self) -> Int3:
        """The box that holds a stack."""
        return (self.offsets_z[-1] - self.offsets_z[0] + 1, self.size_vx, self.size_vx)

    @property
    def centre_vx(self) -> Int3:
        """The voxel of that box that stands for its place: in the target slice."""
        return (-self.offsets_z[0], self.size_vx // 2, self.size_vx // 2)

    @property
    def label_box(self) -> Box:
        """The part of that box whose labels are asked for: the target slice."""
        return Box((-self.offsets_z[0], 0, 0), (1, self.size_vx, self.size_vx))

    @property
    def planes(self) -> tuple[int, ...]:
        """Slices of that box that belong to the stack."""
        return tuple(offset - self.offsets_z[0] for offset in self.offsets_z)


@dataclass(frozen=True, kw_only=True)
class CubeConfig:
    """Boxes of any shape."""

    size_vx: Int3 = (64, 64, 64)
    """Size (z, y, x) in voxels; thin in z where voxels are tall."""

    def __post_init__(self) -> None:
        if min(self.size_vx) < 1:
            raise BoxError(f"size_vx is {self.size_vx}; wanted at least 1 voxel along every axis")

    @property
    def crop_vx(self) -> Int3:
        """The box itself."""
        return self.size_vx

    @property
    def centre_vx(self) -> Int3:
        """The voxel of the box that stands for its place."""
        z, y, x = self.size_vx
        return z // 2, y // 2, x // 2

    @property
    def label_box(self) -> Box:
        """The part of the box whose labels are asked for: all."""
        return Box((0, 0, 0), self.size_vx)

    @property
    def planes(self) -> tuple[int, ...]:
        """All of its slices."""
        return tuple(range(self.size_vx[0]))


CropConfig = StackConfig | CubeConfig

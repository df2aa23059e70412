"""What dense-ssl reads: stacks of slices at one physical scale, from any number of volumes.

Volumes differ in pixel size and in the distance of their slices; codes of content should not. So a
recipe asks in nanometres, and this module finds the level, the averaging and the slices that fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from em_data import (
    Box,
    Region,
    StackConfig,
    Volume,
)
from em_data.loader import Loader
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from em_train.engine import distributed
from em_train.engine.reading import load


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    volumes: tuple[str, ...] = ("synthetic:",)
    """Addresses of raw volumes; `synthetic:` is generated on the fly."""
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume, as it is."""
    pixel_nm: PositiveFloat | None = 8.0
    """Wanted size of a pixel in the slice: the level nearest to it is read, and averaged down where
    its pixels are less than two thirds of that. Without it, pixels as they are."""
    stack: StackConfig = field(
        default_factory=lambda: StackConfig(size_vx=137, offsets_z=(-1, 0, 1))
    )
    context_nm: PositiveFloat | None = 45.0
    """Distance that an offset of 1 in the stack stands for, rounded to whole slices: at least one, and
    less where a volume is too thin for it. Without it, one slice."""
    z: tuple[NonNegativeInt, PositiveInt] | None = None
    """Slices to learn from, half-open: (0, 12) are slices 0 to 11 of every volume. Without it, all."""
    batch_size: PositiveInt = 8
    """Stacks per step, over all processes."""
    samples_per_epoch: PositiveInt = 2000
    """Stacks after which an epoch is counted."""
    memory_gib: PositiveFloat = 2.0
    """Memory for voxels in GiB. Volumes that fit are held, by every process; larger ones are
    read block by block."""
    threads: PositiveInt = 2
    """Reading threads."""
    photometry: NonNegativeFloat = 0.3
    """Strength of the changes of contrast, brightness and gamma of every slice."""
    turn_target: bool = True
    """Turn and mirror every view of the target by itself."""
    shuffle_context: bool = False
    """Give every target the context of another place: the audit, where nothing can be predicted."""


def learned(volumes: list[Volume], config: DataConfig) -> list[Box]:
    """The part of each volume that is learned from."""
    boxes = []
    for volume in volumes:
        (start, stop), depth = config.z or (0, volume.shape[0]), volume.shape[0]
        if not start < stop <= depth:
            raise ValueError(
                f"data.z is {start}:{stop}, but {volume.source} has slices 0:{depth}; give a range "
                "inside it, first < last"
            )
        boxes.append(Box((start, 0, 0), (stop - start, *volume.shape[1:])))
    return boxes


def stack_of(volumes: list[Volume], config: DataConfig, rim: int = 0) -> StackConfig:
    """The slices of a sample, and a window with a rim of so many pixels around what is asked for."""
    stack, z_nm = config.stack, (volumes[0].voxel_size_nm or (math.inf,))[0]
    thinnest = min(box.size_vx[0] for box in learned(volumes, config))
    step = round(config.context_nm / z_nm) if config.context_nm else 1
    step = max(1, min(step, (thinnest - 1) // max(1, stack.crop_vx[0] - 1)))
    return StackConfig(
        size_vx=stack.size_vx + 2 * rim,
        offsets_z=tuple(step * offset for offset in stack.offsets_z),
    )


def make_loader(volumes: list[Volume], data: DataConfig, *, rim: int, seed: int) -> Loader:
    """Stacks of independent places, or by block shuffle where the memory is too small for all."""
    if data.shuffle_context and distributed.share(data.batch_size, "data.batch_size") < 2:
        raise ValueError(
            f"data.shuffle_context swaps the stacks of a process, and with data.batch_size "
            f"{data.batch_size} each of {distributed.size()} has one; take at least "
            f"{2 * distributed.size()}"
        )
    return load(
        volumes,
        stack_of(volumes, data, rim),
        data,
        seed=seed,
        regions=[Region((box,)) for box in learned(volumes, data)],
    )

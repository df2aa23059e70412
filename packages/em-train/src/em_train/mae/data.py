"""What the masked autoencoder reads: cubes of raw volumes, wherever they lie.

Of a volume that is too large to learn all of it, or on a server, boxes are named or spread over it as
a grid; block shuffle reads their chunks once and serves many cubes of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from em_data import (
    Box,
    CubeConfig,
    PlaceSampler,
    Region,
    Split,
    SplitConfig,
    Volume,
    hold_out,
)
from em_data.augment.clahe import clahe
from em_data.geometry import Int3, bounds, int3, intersect
from em_data.loader import Batch, Loader
from em_models import Voxels
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from em_train.engine.reading import load


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    volumes: tuple[str, ...] = ("synthetic:shape=192x256x256",)
    """Addresses of raw volumes; `synthetic:` is generated on the fly."""
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume, as it is."""
    pixel_nm: PositiveFloat | None = None
    """Wanted size of a pixel in the slice: the level nearest to it is read, and averaged down where
    its pixels are less than two thirds of that. Without it, pixels as they are."""
    cube: CubeConfig = field(default_factory=CubeConfig)
    boxes: tuple[tuple[int, int, int, int, int, int], ...] = ()
    """Boxes to learn from, in every volume: z, y, x of the first voxel, then the size."""
    grid: Int3 | None = None
    """Number of boxes along (z, y, x), spread evenly over every volume, instead of
    data.boxes."""
    box_vx: Int3 = (256, 256, 256)
    """Size of the boxes of the grid; cut down to the volume."""
    split: SplitConfig = field(default_factory=lambda: SplitConfig(last_z=0.1))
    split_of: tuple[NonNegativeInt, ...] = ()
    """Numbers of the volumes, from 0, of which a part is held out. Without it, of all."""
    clahe: bool = False
    """Equalise the contrast of every slice of a cube (CLAHE)."""
    batch_size: PositiveInt = 8
    """Cubes per step, over all processes."""
    samples_per_epoch: PositiveInt = 1600
    """Cubes of an epoch, after which the held-out cubes are scored."""
    checked_cubes: PositiveInt = 16
    """Number of held-out cubes that are scored."""
    empty_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of a cube that may have one value; others are drawn again. Without it, all
    are kept."""
    nan: Literal["refuse", "mask"] = "refuse"
    """Voxels of floating point that are NaN or infinite: refuse (the volume) or mask (no sample
    holds one)."""
    gaps: Literal["refuse", "close"] = "refuse"
    """Gaps in the numbers of the slices of a folder: refuse (the folder) or close (the slices
    follow each other)."""
    memory_gib: PositiveFloat = 2.0
    """Memory for voxels in GiB. Volumes that fit are held, by every process; larger ones are
    read block by block."""
    threads: PositiveInt = 2
    """Reading threads."""


def boxes_of(shape: Int3, config: DataConfig) -> list[Box]:
    """The parts of a volume that are looked at.

    >>> boxes_of((100, 64, 64), DataConfig(grid=(2, 1, 1), box_vx=(30, 64, 64)))[1]
    Box(origin_vx=(70, 0, 0), size_vx=(30, 64, 64))
    """
    if config.boxes and config.grid:
        raise ValueError("data.boxes and data.grid both say which parts are learned; give one")
    if config.boxes:
        return [Box(int3(box[:3]), int3(box[3:])) for box in config.boxes]
    if config.grid is None:
        return [Box((0, 0, 0), shape)]
    size = int3([min(n, b) for n, b in zip(shape, config.box_vx, strict=True)])
    axes = [
        np.linspace(0, n - s, count).round().astype(int).tolist() if count > 1 else [(n - s) // 2]
        for n, s, count in zip(shape, size, config.grid, strict=True)
    ]
    return [Box((z, y, x), size) for z in axes[0] for y in axes[1] for x in axes[2]]


def split_data(volumes: Sequence[Volume], config: DataConfig) -> Split:
    """Where cubes are learned from, and where those lie that are held out."""
    shapes = [volume.shape for volume in volumes]
    boxes = [boxes_of(shape, config) for shape in shapes]
    if any(number >= len(shapes) for number in config.split_of):
        raise ValueError(
            f"data.split_of is {config.split_of} for {len(shapes)} volumes; wanted numbers from 0 to "
            f"{len(shapes) - 1}"
        )
    chosen = config.split_of or range(len(shapes))
    training, validation, held_out = [], [], []
    for number, (shape, own) in enumerate(zip(shapes, boxes, strict=True)):
        settings = config.split if number in chosen else SplitConfig(last_z=0)
        if settings.last_z and settings.z is None and not settings.boxes:
            # A cube with its centre there must fit between the gap and the end.
            least = (config.cube.size_vx[0] + 1) // 2 / bounds(own).size_vx[0]
            settings = replace(settings, last_z=min(0.5, max(settings.last_z, least)))
        split = hold_out([shape], config.cube, settings, covered=[own])
        training.append(_within(split.training[0], own, config.cube))
        validation.append(_within(split.validation[0], own, config.cube))
        held_out.append(split.held_out[0])
    return Split(tuple(training), tuple(validation), tuple(held_out))


def _within(region: Region, boxes: Sequence[Box], cube: CubeConfig) -> Region:
    """The part of a region whose cubes lie wholly in one of the boxes."""
    common = [intersect(inside, box) for inside in region.inside for box in boxes]
    fitting = [
        box
        for box in common
        if box and all(n >= s for n, s in zip(box.size_vx, cube.size_vx, strict=True))
    ]
    return Region(tuple(fitting), region.centres)


def make_loader(volumes: Sequence[Volume], split: Split, data: DataConfig, *, seed: int) -> Loader:
    """Cubes of independent places, or by block shuffle where the memory is too small for all."""
    return load(
        volumes,
        data.cube,
        data,
        seed=seed,
        served={"empty_share": data.empty_share},
        regions=split.training,
    )


def held_out(loader: Loader, split: Split, data: DataConfig, *, seed: int) -> list[Batch]:
    """The cubes that the run is judged by, the same ones at every step and on every machine."""
    kept = [number for number, region in enumerate(split.validation) if region.centres]
    if not kept:
        raise ValueError(
            "nothing is held out, so nothing says whether the model learned; hold out a part, for "
            "instance with data.split.last_z=0.1"
        )
    volumes = [loader.volumes[number] for number in kept]
    sampler = PlaceSampler(
        [volume.shape for volume in volumes],
        data.cube,
        seed,
        regions=[split.validation[number] for number in kept],
        sources=[volume.source for volume in volumes],
    )
    size = min(data.batch_size, data.checked_cubes)
    checked = Loader(
        volumes, sampler, batch_size=size, samples_per_epoch=2**31, threads=data.threads
    )
    checked.ranges = [loader.ranges[number] for number in kept]
    batches = list(checked.batches(0, -(-data.checked_cubes // size)))
    if not any(np.ptp(batch.raw.numpy(), (1, 2, 3)).any() for batch in batches):
        raise ValueError(
            "every held-out cube has one value all over, so nothing says whether the model learned; "
            "hold out another part, with data.split"
        )
    return batches


def voxels_of(batch: Batch, config: DataConfig) -> Voxels:
    """Cubes as the model takes them: bytes as they are stored, other types in [0, 1]."""
    size = batch.voxel_size_nm[0]
    if batch.raw.dtype.itemsize == 1 and not batch.raw.dtype.is_signed and not config.clahe:
        return Voxels(batch.raw[:, None], batch.scale, batch.shift, size)
    image = batch.image()  # (B, Z, Y, X)
    return Voxels((clahe(image) if config.clahe else image)[:, None], voxel_size_nm=size)


def token_pitch(volumes: Sequence[Volume], patch_vx: Int3) -> float | None:
    """The unit of positions that fits the data: the pitch of tokens along x, in nm."""
    size = next((volume.voxel_size_nm for volume in volumes if volume.voxel_size_nm), None)
    return None if size is None else patch_vx[2] * size[2]

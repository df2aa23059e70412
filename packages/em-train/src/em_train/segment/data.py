"""What segmentation reads: raw volumes with labels, what of them is trained on, and the patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from em_data import (
    Box,
    CubeConfig,
    Labels,
    Region,
    Split,
    SplitConfig,
    Volume,
    augment,
    hold_out,
    open_volume,
)
from em_data.augment import AugmentConfig, presets
from em_data.augment.defects import DefectConfig
from em_data.augment.warp import WarpConfig
from em_data.geometry import Int3, end_of
from em_data.loader import Loader
from em_data.sampler.places import centred, origins
from pydantic import Field, PositiveFloat, PositiveInt

from em_train.engine.reading import budget_of, check_scale, load
from em_train.segment.labels import Classes, balance, open_labels

# Cheap: no voxel is interpolated.
PLAIN = AugmentConfig(warp=WarpConfig(share=0), defects=DefectConfig(), photometry=0.3, share=0)
NOTHING = replace(PLAIN, warp=WarpConfig(share=0, symmetries="none"), photometry=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    volumes: tuple[str, ...] = ()
    """Addresses of raw volumes."""
    labels: tuple[str, ...] = ()
    """NAME=ADDRESS or NAME=ADDRESS@VALUE of every class; for several volumes once for each, in order."""
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume. Without it, the finest."""
    ignore: int | None = None
    """Value of the labels that means unlabelled."""
    exclusive: bool = False
    """One class for every pixel: where labels overlap, the last of them counts."""
    split: SplitConfig = field(default_factory=SplitConfig)
    slices: PositiveInt | None = None
    """Number of labelled slices to train on, evenly spread. Without it, all that are not held
    out."""
    patch_vx: PositiveInt = 256
    """Side of the training patches, in pixels."""
    depth_vx: PositiveInt = 16
    """Slices of a training patch of a 3D network."""
    batch_size: PositiveInt = 8
    """Patches per step, over all processes."""
    samples_per_epoch: PositiveInt = 1500
    """Patches between two looks at the held-out slices."""
    balance: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the patches that have an object at their centre, the same for every class."""
    augment: Literal["none", "plain", "fib-sem", "ss-tem"] = "plain"
    """Augmentation: plain (turns, flips, grey values), fib-sem or ss-tem (everything that
    befalls such volumes)."""
    memory_gib: PositiveFloat = 2.0
    """Memory for voxels in GiB. Volumes that fit are held, by every process; larger ones are
    read block by block."""
    threads: PositiveInt = 2
    """Reading threads."""
    checked_slices: PositiveInt = 16
    """Largest number of held-out slices of a volume that are scored, evenly spread."""


def open_data(
    config: DataConfig, *, hold: bool = True
) -> tuple[list[Volume], list[Labels], Classes]:
    """Raw volumes and their labels, held in memory where all of them fit."""
    if not config.volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    volumes = [open_volume(address, at_nm=config.at_nm) for address in config.volumes]
    check_scale(volumes)
    labels, classes = open_labels(
        volumes,
        config.labels,
        at_nm=config.at_nm,
        ignore=config.ignore,
        exclusive=config.exclusive,
    )
    nbytes = sum(volume.nbytes for volume in volumes) + sum(one.nbytes for one in labels)
    if hold and nbytes <= budget_of(config):
        volumes = [volume.held_in_memory() for volume in volumes]
        labels = [one.held_in_memory() for one in labels]
    return volumes, labels, classes


def augmentation(config: DataConfig) -> AugmentConfig:
    """What is done to patches."""
    own = {"none": NOTHING, "plain": PLAIN}
    return own[config.augment] if config.augment in own else presets.preset(config.augment)


def crop_of(volumes: Sequence[Volume], config: DataConfig, patch_vx: Int3) -> CubeConfig:
    """What is cut out: the patch that the network is shown, and what may turn into it."""
    size = augment.source_vx(patch_vx, augmentation(config), volumes[0].voxel_size_nm)
    for volume in volumes:
        if any(n > have for n, have in zip(size, volume.shape, strict=True)):
            raise ValueError(
                f"data.augment={config.augment} cuts {' × '.join(map(str, size))} voxels for a patch "
                f"of {' × '.join(map(str, patch_vx))}, more than {volume.source} has "
                f"({' × '.join(map(str, volume.shape))}); take smaller patches, or augment=plain"
            )
    return CubeConfig(size_vx=size)


def split_data(
    volumes: list[Volume], labels: list[Labels], data: DataConfig, crop: CubeConfig
) -> Split:
    """What is trained on, with `data.slices` only so many labelled slices, and what is held out."""
    covered = [one.covered for one in labels]
    found = hold_out([volume.shape for volume in volumes], crop, data.split, covered=covered)
    if data.slices is None:
        return found
    regions, several = [], len(volumes)
    for number, region in enumerate(found.training):
        wanted = data.slices // several + (number < data.slices % several)
        at = planes_of(region, volumes[number], crop)
        if wanted > len(at):
            raise ValueError(
                f"data.slices asks for {wanted} labelled slices of {volumes[number].source}, which has "
                f"{len(at)} besides those that are held out; take fewer"
            )
        chosen = {at[int((i + 0.5) * len(at) / wanted)] for i in range(wanted)}
        regions.append(
            centred(region, [Box((z, 0, 0), (1, *volumes[number].shape[1:])) for z in chosen])
        )
    kept = [number for number, region in enumerate(regions) if region.centres]
    if len(kept) < len(regions):
        raise ValueError(
            f"data.slices is {data.slices} for {several} volumes; wanted at least one of each"
        )
    return replace(found, training=tuple(regions))


def planes_of(region: Region, volume: Volume, crop: CubeConfig) -> list[int]:
    """The slices that crops of a region may have in their middle."""
    (boxes,) = origins([volume.shape], crop.crop_vx, crop.centre_vx, [region])
    first = crop.centre_vx[0]
    return sorted({z + first for b in boxes for z in range(b.origin_vx[0], end_of(b)[0])})


def make_loader(
    volumes: list[Volume],
    labels: list[Labels],
    classes: Classes,
    split: Split,
    data: DataConfig,
    crop: CubeConfig,
    *,
    seed: int,
) -> Loader:
    """Patches of independent places, or by block shuffle where the memory is too small for all."""
    return load(
        volumes,
        crop,
        data,
        seed=seed,
        served={"labels": labels},
        regions=split.training,
        labels=labels,
        balance=balance(classes, data.balance),
        threads=data.threads,
    )

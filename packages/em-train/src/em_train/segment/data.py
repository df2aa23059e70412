"""What segmentation reads: volumes or a collection of images, what of it is trained on, the patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np
from em_data import (
    Box,
    CubeConfig,
    ImageLabels,
    Images,
    ImageSplit,
    Labels,
    Region,
    Split,
    SplitConfig,
    Volume,
    augment,
    hold_out,
    hold_out_images,
)
from em_data.augment import AugmentConfig, presets
from em_data.augment.defects import DefectConfig
from em_data.augment.warp import WarpConfig
from em_data.formats.images import some
from em_data.geometry import Int3, end_of
from em_data.loader import Loader
from em_data.sampler.places import centred, origins
from pydantic import Field, PositiveFloat, PositiveInt

from em_train.engine.reading import (
    Fingerprint,
    announce_nan,
    budget_of,
    check_scale,
    checksum,
    fingerprint_data,
    is_collection,
    load,
    open_collection,
    open_raw,
)
from em_train.segment.labels import Classes, balance, open_image_labels, open_labels

# Cheap: no voxel is interpolated.
PLAIN = AugmentConfig(warp=WarpConfig(share=0), defects=DefectConfig(), photometry=0.3, share=0)
NOTHING = replace(PLAIN, warp=WarpConfig(share=0, symmetries="none"), photometry=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read."""

    volumes: tuple[str, ...] = ()
    """Addresses of raw volumes, or images:FOLDER, a collection of images, alone."""
    labels: tuple[str, ...] = ()
    """NAME=ADDRESS or NAME=ADDRESS@VALUE of every class, NAME=borders:INSTANCES where instances
    meet, or classes:MAP; for several volumes once for each, in order."""
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume. Without it, the finest."""
    ignore: int | None = None
    """Value of the labels that means unlabelled."""
    exclusive: bool = False
    """One class for every pixel: where labels overlap, the last of them counts."""
    split: SplitConfig = field(default_factory=SplitConfig)
    held_images: tuple[int, int] | float = 0.2
    """Images of a collection that are held out: a share of them or, from 1 on, their number,
    evenly spread over the order of names; or a range, such as [100, 120] for 100 to 119."""
    slices: PositiveInt | None = None
    """Number of labelled slices, or images, to train on, evenly spread. Without it, all that are
    not held out."""
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
    checked_slices: PositiveInt = 16
    """Largest number of held-out slices of a volume, or images, that are scored, evenly spread."""


def open_data(
    config: DataConfig, *, hold: bool = True
) -> tuple[Sequence[Volume], Sequence[Labels], Classes]:
    """Volumes or images and their labels, held in memory where all of them fit."""
    if not config.volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    images = open_collection(config, hold=False)
    if images is not None:
        of_images, classes = open_image_labels(
            images,
            config.labels,
            ignore=config.ignore,
            exclusive=config.exclusive,
            quiet=not hold,
        )
        if hold and images.nbytes + of_images.nbytes <= budget_of(config):
            images, of_images = images.held_in_memory(), of_images.held_in_memory()
        return images, of_images, classes
    volumes = [open_raw(address, config, config.at_nm) for address in config.volumes]
    check_scale(volumes)
    labels, classes = open_labels(
        volumes,
        config.labels,
        at_nm=config.at_nm,
        ignore=config.ignore,
        exclusive=config.exclusive,
        quiet=not hold,
    )
    nbytes = sum(volume.nbytes for volume in volumes) + sum(one.nbytes for one in labels)
    if hold and nbytes <= budget_of(config):
        volumes = [volume.held_in_memory() for volume in volumes]
        labels = [one.held_in_memory() for one in labels]
    if hold:
        announce_nan(volumes)
    return volumes, labels, classes


def augmentation(config: DataConfig) -> AugmentConfig:
    """What is done to patches."""
    own = {"none": NOTHING, "plain": PLAIN}
    found = own[config.augment] if config.augment in own else presets.preset(config.augment)
    if any(map(is_collection, config.volumes)):  # one slice has nothing to be tilted into
        found = replace(found, warp=replace(found.warp, out_of_plane=False))
    return found


def crop_of(volumes: Sequence[Volume], config: DataConfig, patch_vx: Int3) -> CubeConfig:
    """What is cut out: the patch that the network is shown, and what may turn into it."""
    size = augment.source_vx(patch_vx, augmentation(config), volumes[0].voxel_size_nm)
    if isinstance(volumes, Images) and size[0] > 1:
        raise ValueError(
            f"a patch has {size[0]} slices, and images have one each; take a network of single slices: "
            "no unet3d, and slices=1, as it is by default"
        )
    for volume in () if isinstance(volumes, Images) else volumes:
        if any(n > have for n, have in zip(size, volume.shape, strict=True)):
            raise ValueError(
                f"data.augment={config.augment} cuts {' × '.join(map(str, size))} voxels for a patch "
                f"of {' × '.join(map(str, patch_vx))}, more than {volume.source} has "
                f"({' × '.join(map(str, volume.shape))}); take smaller patches, or augment=plain"
            )
    return CubeConfig(size_vx=size)


def split_data(
    volumes: Sequence[Volume], labels: Sequence[Labels], data: DataConfig, crop: CubeConfig
) -> Split | ImageSplit:
    """What is trained on, with `data.slices` only so many labelled slices, and what is held out."""
    if isinstance(volumes, Images):
        return split_images(volumes, data, crop)
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


def split_images(images: Images, data: DataConfig, crop: CubeConfig) -> ImageSplit:
    """The same of a collection, where an image is trained on or held out as a whole."""
    if data.split != SplitConfig():
        raise ValueError(
            "data.split and --val-z hold out slices of volumes, and these are images; hold out some "
            "with --val-images, such as 0.2 or 100:120"
        )
    found = hold_out_images(len(images), data.held_images)
    if data.slices is not None:
        there = len(found.training)
        if data.slices > there:
            raise ValueError(
                f"data.slices asks for {data.slices} labelled images of {images.folder}, which has "
                f"{there} besides those that are held out; take fewer"
            )
        chosen = ((np.arange(data.slices) + 0.5) * there / data.slices).astype(np.int64)
        found = found._replace(training=found.training[chosen])
    sides = images.shapes[found.training, 1:].min(1)
    small = found.training[sides < crop.crop_vx[1]]
    if len(small):
        named = [f"{images.name(n)} ({' × '.join(map(str, images.shapes[n][1:]))})" for n in small]
        raise ValueError(
            f"{len(small)} of {len(sides)} images to train on are smaller than the "
            f"{crop.crop_vx[1]} × {crop.crop_vx[2]} pixels of a patch: {some(named)}; lower "
            f"data.patch_vx, or leave them out with ?least_px={crop.crop_vx[1]} in the address"
        )
    return found


def planes_of(region: Region, volume: Volume, crop: CubeConfig) -> list[int]:
    """The slices that crops of a region may have in their middle."""
    where = ([volume.shape], crop.crop_vx, crop.centre_vx, [region], [volume.source])
    (boxes,) = origins(*where)
    first = crop.centre_vx[0]
    return sorted({z + first for b in boxes for z in range(b.origin_vx[0], end_of(b)[0])})


def make_loader(
    volumes: Sequence[Volume],
    labels: Sequence[Labels],
    classes: Classes,
    split: Split | ImageSplit,
    data: DataConfig,
    crop: CubeConfig,
    *,
    seed: int,
) -> Loader:
    """Patches of independent places, or by block shuffle where the memory is too small for all."""
    regions = None
    if isinstance(volumes, Images):
        assert isinstance(labels, ImageLabels) and isinstance(split, ImageSplit)
        volumes, labels = volumes.take(split.training), labels.take(split.training)
    else:
        assert isinstance(split, Split)
        regions = split.training
    return load(
        volumes,
        crop,
        data,
        seed=seed,
        served={"labels": labels},
        regions=regions,
        labels=labels,
        balance=balance(classes, data.balance),
        threads=data.threads,
    )


def fingerprint(
    loader: Loader,
    volumes: Sequence[Volume],
    labels: Sequence[Labels],
    split: Split | ImageSplit,
) -> Fingerprint:
    """What a resumed run must find unchanged: of what is trained on, and of what is held out."""
    if isinstance(split, Split):
        return fingerprint_data(loader, split.training)
    assert isinstance(volumes, Images) and isinstance(labels, ImageLabels)
    held = checksum(volumes.take(split.held), labels.take(split.held)) if len(split.held) else 0
    return fingerprint_data(loader, f"{len(split.held)} held out {held:08x}")

"""What restoration learns from: images, and the same images damaged, from a better scan, or noisy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from em_data import (
    GreyRange,
    Images,
    Key,
    Labels,
    Region,
    SplitConfig,
    StackConfig,
    Stream,
    Volume,
    augment,
    choose_sampler,
    grey_range,
    hold_out,
    hold_out_images,
    interpolated,
    match_labels,
    place_target,
    tiles,
)
from em_data.augment import (
    BACKGROUND,
    NOISE,
    BlindSpotConfig,
    DegradeConfig,
    blind_spots,
    degradation,
    degrade,
    only,
)
from em_data.formats.images import some
from em_data.loader import Batch, Loader
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from em_train.engine.reading import (
    announce_nan,
    budget_of,
    check_scale,
    load,
    open_collection,
    open_raw,
)

Task = Literal["pretrain", "denoise", "super-resolution", "background"]
CHECKED = 2**32  # the epoch that damage of held-out crops is drawn for: no sample has it


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and what is done to it."""

    task: Task = "pretrain"
    """Damage that is repaired: pretrain (everything that data.modality has), denoise,
    super-resolution (pixels that are data.factor times as large) or background (charging and uneven
    shades)."""
    volumes: tuple[str, ...] = ()
    """Addresses of volumes, or of one collection of images (images:FOLDER)."""
    learn_from: Literal["copies", "target", "noise", "neighbours"] = "copies"
    """Source of pairs: copies (damaged ones of the volumes), target (a better scan, data.target),
    noise (the volumes alone, by blind spots) or neighbours (the slice above or below, whose noise
    is another)."""
    target: tuple[str, ...] = ()
    """Addresses of the better scans, one for each volume, with learn_from=target."""
    modality: Literal["fib-sem", "ss-tem", "sem-particles", "stem-lattice", "published"] = "ss-tem"
    """Microscopy whose damage is copied, with learn_from=copies."""
    damage: DegradeConfig | None = None
    """Damage in detail, instead of that of data.modality."""
    factor: Literal[2, 4] = 2
    """Pixels of the result, along y and x, for one that is given, with task=super-resolution."""
    blind_spot: BlindSpotConfig = field(default_factory=BlindSpotConfig)
    at_nm: tuple[float, float, float] | None = None
    """Wanted voxel size (z, y, x) in nm: the nearest level of each volume. Without it, the finest."""
    slices: Literal[1, 3, 5] = 1
    """Slices that the network is shown, as channels; the middle one is restored."""
    split: SplitConfig = field(default_factory=lambda: SplitConfig(last_z=0.1))
    held_images: float | tuple[int, int] = 0.1
    """Images of a collection that are held out: their share or, from 1 on, their number, evenly
    spread; or a range, the second one not included."""
    patch_vx: PositiveInt = 128
    """Side of the training crops, in pixels."""
    invert: bool = False
    """Exchange black and white in half of the crops, for collections with both polarities."""
    batch_size: PositiveInt = 8
    """Crops per step, over all processes."""
    samples_per_epoch: PositiveInt = 1600
    """Crops between two looks at the held-out ones."""
    checked_crops: PositiveInt = 16
    """Number of held-out crops that are looked at."""
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

    def __post_init__(self) -> None:
        if bool(self.target) != (self.learn_from == "target"):
            raise ValueError(
                f"data.learn_from is {self.learn_from} and data.target names {len(self.target)} "
                "volumes; give both (--target does), or neither"
            )
        if self.target and len(self.target) != len(self.volumes):
            raise ValueError(
                f"data.target names {len(self.target)} volumes for {len(self.volumes)}; give one for "
                "each, in the same order"
            )
        if self.learn_from in ("noise", "neighbours") and self.task != "denoise":
            raise ValueError(
                f"data.learn_from={self.learn_from} learns to denoise, and data.task is {self.task}; "
                "take data.task=denoise (--task denoise)"
            )
        if self.learn_from == "neighbours" and self.slices > 1:
            raise ValueError(
                "data.learn_from=neighbours asks for a neighbour, which data.slices "
                f"({self.slices}) already shows; take data.slices=1"
            )


class Pair(NamedTuple):
    """What the network is shown and what it should answer."""

    shown: Tensor  # (B, S, Y, X)
    truth: Tensor  # (B, 1, Y, X)
    where: Tensor | None  # (B, 1, Y, X) bool: pixels that are asked for; None: all


class Source(NamedTuple):
    """Volumes or images, their better scans where there are any, and where in them crops may lie."""

    volumes: Sequence[Volume]
    targets: Sequence[Labels] | None
    regions: Sequence[Region] | None = None  # None: anywhere


class Parts(NamedTuple):
    """What is learned from and what is held out."""

    training: Source
    held: Source


def stack_of(data: DataConfig) -> StackConfig:
    """What is cut out: the slices of a crop."""
    reach = 1 if data.learn_from == "neighbours" else data.slices // 2
    return StackConfig(size_vx=data.patch_vx, offsets_z=tuple(range(-reach, reach + 1)))


def damage_of(data: DataConfig) -> DegradeConfig:
    """The damage that is repaired."""
    whole = replace(data.damage or degradation(data.modality), clip=False)  # the type does, below
    if data.task == "super-resolution":
        whole = replace(whole, sampling_factors=(data.factor,))
        return only(whole, ("sampling",), probability=1.0)
    kinds = {"denoise": NOISE, "background": BACKGROUND}.get(data.task)
    return whole if kinds is None else only(whole, kinds)


def open_data(data: DataConfig, *, hold: bool = True) -> Source:
    """The volumes and their better scans, held in memory where all of them fit."""
    if not data.volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    images = open_collection(data, hold=hold)
    if images is not None:
        return open_images_of(images, data)
    volumes = [open_raw(address, data, data.at_nm) for address in data.volumes]
    check_scale(volumes)
    targets: list[Labels] | None = None
    if data.learn_from == "target":
        if data.task == "super-resolution":
            volumes = [interpolated(volume, (1, data.factor, data.factor)) for volume in volumes]
        better = [open_raw(address, data, data.at_nm) for address in data.target]
        targets = [place_target(*pair) for pair in zip(volumes, better, strict=True)]
        for other in better:
            check_contrast(other)
    nbytes = sum(volume.nbytes for volume in volumes) + sum(one.nbytes for one in targets or ())
    if hold and nbytes <= budget_of(data):
        volumes = [volume.held_in_memory() for volume in volumes]
        targets = targets and [one.held_in_memory() for one in targets]
    if hold:
        announce_nan(volumes)
    return Source(volumes, targets)


def open_images_of(images: Images, data: DataConfig) -> Source:
    """A collection of images with a better scan of each, where one is named."""
    side = stack_of(data).size_vx
    if len(stack_of(data).offsets_z) > 1:
        raise ValueError(
            "images have no slices above and below; take data.slices=1 and another data.learn_from"
        )
    small = [images.path(int(n)) for n in np.flatnonzero((images.shapes[:, 1:] < side).any(1))]
    if small:
        raise ValueError(
            f"{len(small)} of {len(images)} images are smaller than a crop of {side} px "
            f"({some(small)}); lower data.patch_vx, or leave them out with ?least_px={side}"
        )
    if data.learn_from != "target":
        return Source(images, None)
    if data.task == "super-resolution":
        raise ValueError(
            "pairs of images of different pixel size are not read; convert each pair into a volume, "
            "or leave --target out, and coarser copies of the images are made"
        )
    targets = match_labels(images, {"target": data.target[0]})
    if targets.dtype != images.dtype:
        raise ValueError(
            f"target {data.target[0]} holds {targets.dtype}, {images.folder} {images.dtype}: the same "
            "number must be the same grey; convert one of them"
        )
    return Source(images, targets)


def check_contrast(volume: Volume) -> None:
    """Refuse a target that has one grey value all over: there is nothing to learn."""
    found = grey_range(volume)
    box = next(iter(tiles(volume.shape, (1, *volume.shape[1:]))))
    if found.high - found.low <= 1 and np.ptp(volume.read(box)) == 0:
        raise ValueError(
            f"{volume.source} has the grey value {volume.read(box).flat[0]} all over; a target shows "
            "what the volume should look like: check the path and the channel"
        )


def split_data(source: Source, data: DataConfig) -> Parts:
    """What is learned from and what is held out: slices at the end, or whole images."""
    of_images = isinstance(source.volumes, Images)
    parts = split_images(source, data) if of_images else split_volumes(source, data)
    if not len(parts.held.volumes):
        raise ValueError(
            "nothing is held out, so nothing says whether the network learned; hold out a part, for "
            "instance with data.split.last_z=0.1, or of images with data.held_images=0.1"
        )
    return parts


def split_images(source: Source, data: DataConfig) -> Parts:
    """A collection, split by whole images."""
    images: Any = source.volumes
    targets: Any = source.targets
    split = hold_out_images(len(images), data.held_images)
    training, held = (Source(images.take(own), targets and targets.take(own)) for own in split)
    return Parts(training, held)


def split_volumes(source: Source, data: DataConfig) -> Parts:
    """Volumes, split by slices or boxes, where they have targets."""
    shapes, stack, settings = (
        [volume.shape for volume in source.volumes],
        stack_of(data),
        data.split,
    )
    covered = [one.covered for one in source.targets] if source.targets else None
    if settings.last_z and settings.z is None and not settings.boxes:
        # A stack around the first held-out slice must fit before the end.
        least = (1 + max(stack.offsets_z)) / min(shape[0] for shape in shapes)
        settings = replace(settings, last_z=min(0.5, max(settings.last_z, least)))
    found = hold_out(shapes, stack, settings, covered=covered)
    kept = [number for number, region in enumerate(found.validation) if region.centres]
    held = Source(
        [source.volumes[number] for number in kept],
        source.targets and [source.targets[number] for number in kept],
        [found.validation[number] for number in kept],
    )
    return Parts(source._replace(regions=found.training), held)


def make_loader(training: Source, data: DataConfig, *, seed: int) -> Loader:
    """Crops of independent places, or by block shuffle where the memory is too small for all."""
    return load(
        training.volumes,
        stack_of(data),
        data,
        seed=seed,
        served={"labels": training.targets},
        regions=training.regions,
    )


def held_out(held: Source, data: DataConfig, *, seed: int) -> list[Pair]:
    """Pairs of held-out crops, with the same damage at every step and on every machine."""
    checked = Loader(
        held.volumes,
        choose_sampler(
            held.volumes,
            stack_of(data),
            seed=seed,
            samples_per_epoch=2**31,
            slots=1,
            budget_bytes=0,
            regions=held.regions,
            exact=True,
        ),
        batch_size=1,
        samples_per_epoch=2**31,
        threads=data.threads,
        labels=held.targets,
    )
    pairs = []
    for number, batch in enumerate(checked.batches(0, data.checked_crops)):
        own = replace(batch, keys=[Key(CHECKED, number)])
        pairs.append(make_pair(own, data, seed=seed, turned=False))
    return pairs


def make_pair(
    batch: Batch, data: DataConfig, *, seed: int, copy: int = 0, turned: bool = True
) -> Pair:
    """What a batch asks: each sample a function of its key, and of `copy` its noise.

    Damage comes after the turns, because scan lines and curtains have a direction.
    """
    image, keys = batch.image(clip=False), batch.keys  # (B, Z, Y, X)
    better = where = None
    if data.learn_from == "target":
        assert batch.labels is not None and batch.valid is not None
        better, where = batch.in_range(batch.labels[:, 0]), batch.valid[:, 0]  # (B, 1, Y, X)
    low, high = limits_of(batch)
    if turned:
        drawn = augment.draw(seed, Stream.SYMMETRY, keys, (2,), "cpu")  # (B, 2)
        turns = augment.symmetries(drawn[:, 0])
        image = augment.transform(image, turns)
        better, where = (
            None if one is None else augment.transform(one, turns) for one in (better, where)
        )
        if data.invert:
            inverted = (drawn[:, 1] < 0.5).to(image.device)[:, None, None, None]
            image = torch.where(inverted, 1 - image, image)
            better = None if better is None else torch.where(inverted, 1 - better, better)
            low, high = torch.where(inverted, 1 - high, low), torch.where(inverted, 1 - low, high)
    middle = image.shape[1] // 2
    own = image[:, middle : middle + 1]
    if better is not None:
        return Pair(image, better, where)
    if data.learn_from == "noise":
        masked, where = blind_spots(image, keys, data.blind_spot, seed=seed)
        return Pair(masked, own, where)
    if data.learn_from == "neighbours":
        below = augment.draw(seed, Stream.NEIGHBOUR, keys, (1,), "cpu")[:, 0] < 0.5
        other = torch.where(below.to(image.device)[:, None, None], image[:, 0], image[:, 2])
        return Pair(own, other[:, None], None)
    damaged = degrade(image, keys, damage_of(data), seed=seed, copy=copy)
    return Pair(torch.minimum(torch.maximum(damaged, low), high), own, None)


def limits_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """The least and the largest grey that the type of a batch can store: (B, 1, 1, 1) each."""
    kind = batch.raw.dtype
    ends = (-torch.inf, torch.inf)
    if not kind.is_floating_point:
        ends = (torch.iinfo(kind).min, torch.iinfo(kind).max)
    stored = torch.tensor(ends, device=batch.raw.device).view(2, 1, 1, 1, 1)
    low, high = (batch.in_range(one.expand(len(batch.raw), 1, 1, 1)) for one in stored)
    return low, high


def saturated(image: Tensor, dtype: np.dtype[Any], grey: GreyRange) -> Tensor:
    """Grey values from 0 to 1, cut off where the type that stores them ends."""
    if dtype.kind not in "iu":
        return image
    limits = np.iinfo(dtype)
    low, high = grey.unit(np.array([limits.min, limits.max]), clip=False).tolist()
    return image.clamp(low, high)

"""How recipes read: volumes at one physical scale, held where memory allows, and batches of them.

What a sample is differs from recipe to recipe and stands in `<recipe>/data.py`; how volumes are opened
and how samples become batches does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from em_data import BlockSampler, Volume, binned, choose_sampler, open_volume
from em_data.loader import Loader

from em_train.engine import distributed

SAME_SCALE = 1.1  # largest ratio of the voxel sizes of volumes that are learned together


class ScaleConfig(Protocol):
    """At which scale volumes are read."""

    @property
    def volumes(self) -> tuple[str, ...]: ...
    @property
    def at_nm(self) -> tuple[float, float, float] | None: ...
    @property
    def pixel_nm(self) -> float | None: ...
    @property
    def memory_gib(self) -> float: ...


class BatchConfig(Protocol):
    """How samples become batches."""

    @property
    def batch_size(self) -> int: ...
    @property
    def samples_per_epoch(self) -> int: ...
    @property
    def memory_gib(self) -> float: ...
    @property
    def threads(self) -> int: ...


def open_at(address: str, config: ScaleConfig) -> Volume:
    """A volume at the scale that is learned: as it is at `at_nm`, or averaged down to `pixel_nm`."""
    volume = open_volume(address, at_nm=config.at_nm)
    pixel, size = config.pixel_nm, volume.voxel_size_nm
    if config.at_nm or pixel is None or size is None:
        return volume
    if len(volume.levels) > 1:
        volume = open_volume(address, at_nm=(max(size[0], pixel), pixel, pixel))
        size = volume.voxel_size_nm or size
    return binned(volume, (1, *(max(1, round(pixel / s)) for s in size[1:])))


def open_volumes(config: ScaleConfig, *, hold: bool = True) -> list[Volume]:
    """The raw volumes of one scale, held in memory where all of them fit."""
    volumes = [open_at(address, config) for address in config.volumes]
    if not volumes:
        raise ValueError("data.volumes is empty; name at least one volume, with --data")
    check_scale(volumes)
    if hold and sum(volume.nbytes for volume in volumes) <= budget_of(config):
        volumes = [volume.held_in_memory() for volume in volumes]
    return volumes


def check_scale(volumes: Sequence[Volume]) -> None:
    """Refuse volumes whose voxels differ in size, or with channels: one network sees one scale."""
    for volume in volumes:
        volume.check_one_channel()
    sizes = [volume.voxel_size_nm for volume in volumes if volume.voxel_size_nm is not None]
    for axis, values in zip("zyx", zip(*sizes, strict=True), strict=False):
        if max(values) > SAME_SCALE * min(values):
            raise ValueError(
                f"the volumes have voxels of {min(values):g} to {max(values):g} nm along {axis}; one "
                "network sees one scale: choose levels that match, with data.at_nm"
            )


def budget_of(config: ScaleConfig | BatchConfig) -> int:
    """Bytes of memory for voxels."""
    return int(config.memory_gib * 2**30)


def load(
    volumes: Sequence[Volume],
    crop: Any,
    config: BatchConfig,
    *,
    seed: int,
    served: dict[str, Any] | None = None,
    **drawn: Any,
) -> Loader:
    """Batches of independent places, or by block shuffle where the memory is too small for all.

    Args:
        volumes: what is read.
        crop: what a sample is.
        config: how many samples, in how much memory.
        seed: another seed, other samples.
        served: more of `em_data.loader.Loader`.
        drawn: more of `em_data.choose_sampler`, such as the regions that samples lie in.
    """
    sampler = choose_sampler(
        volumes,
        crop,
        seed=seed,
        samples_per_epoch=config.samples_per_epoch,
        slots=config.batch_size,
        budget_bytes=budget_of(config),
        **drawn,
    )
    return Loader(
        volumes,
        sampler,
        batch_size=distributed.share(config.batch_size, "data.batch_size"),
        samples_per_epoch=config.samples_per_epoch,
        threads=config.threads,
        rank=distributed.rank(),
        world=distributed.size(),
        **(served or {}),
    )


def fingerprint_data(loader: Loader, *more: object) -> str:
    """What the samples depend on besides the configuration: a resumed run must find it unchanged."""
    parts = [
        f"{volume.dtype} {volume.shape} of {grey.low:.4g} to {grey.high:.4g}"
        for volume, grey in zip(loader.volumes, loader.ranges, strict=True)
    ]
    parts += [str(one) for one in more]
    if isinstance(loader.sampler, BlockSampler):
        parts.append(f"blocks {loader.sampler.plan}")
    return ", ".join(parts)

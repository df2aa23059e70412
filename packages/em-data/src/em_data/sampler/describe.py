"""What a sampler costs and how random it is, in words for the log of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from em_data.geometry import Box, disjoint, int3
from em_data.labels import Labels
from em_data.sampler.block_plan import WINDOW, place_figures, plan_figures
from em_data.sampler.block_shuffle import BlockSampler, bytes_per_voxel, chunks_of
from em_data.sampler.place_sampler import PlaceSampler
from em_data.volume import Volume


def describe(
    sampler: PlaceSampler | BlockSampler,
    volumes: Sequence[Volume],
    *,
    samples: int,
    labels: Sequence[Labels | None] | None = None,
) -> str:
    """What `samples` samples of a sampler cost and how random they are, in a sentence.

    >>> import numpy as np
    >>> from em_data import CubeConfig, PlaceSampler, open_volume
    >>> volume = open_volume(np.zeros((64, 256, 256), np.uint8))
    >>> sampler = PlaceSampler([volume.shape], CubeConfig(size_vx=(16, 64, 64)), seed=0)
    >>> describe(sampler, [volume], samples=100)
    'independent crops of 16 × 64 × 64 voxels from 4 MiB held in memory; 100 samples cover 79 % of \
the voxels'
    """
    crop_vx = sampler.config.crop_vx
    words = " × ".join(map(str, crop_vx))
    # What the crops of each box of origins touch.
    reach = [
        [Box(o, int3([n + s - 1 for n, s in zip(size, crop_vx, strict=True)])) for o, size in own]
        for own in sampler.boxes
    ]
    voxels = sum(math.prod(box.size_vx) for own in reach for box in disjoint(own))
    seen = -math.expm1(-samples * math.prod(crop_vx) / voxels)
    covered = f"{samples:,} samples cover {_percent(seen)} of the voxels"
    if isinstance(sampler, PlaceSampler):
        if all(isinstance(volume.array, np.ndarray) for volume in volumes):
            held = sum(volume.nbytes for volume in volumes)
            return (
                f"independent crops of {words} voxels from {_mib(held)} held in memory; {covered}"
            )
        figures = place_figures([chunks_of(v) for v in volumes], sampler.config, sampler.boxes)
        return (
            f"independent crops of {words} voxels, each read by itself: "
            f"{figures.decoded_per_served:.1f} bytes decoded for every byte served, "
            f"{_percent(figures.near_duplicates)} near-duplicates; {covered}"
        )
    plan = sampler.plan
    figures = plan_figures(
        plan,
        sampler.chunk_vx,
        sampler.config,
        itemsize=bytes_per_voxel(volumes, labels),
        boxes=sampler.boxes,
    )
    return (
        f"crops of {words} voxels from {plan.slots * plan.positions} blocks in memory "
        f"({_mib(figures.resident_bytes)} with those on their way), {plan.crops} crops of each: "
        f"{figures.decoded_per_served:.2f} bytes decoded for every byte served, "
        f"{_percent(figures.near_duplicates)} near-duplicates (more than half in common with one of "
        f"the last {WINDOW:,}); {covered}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _mib(nbytes: float) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"

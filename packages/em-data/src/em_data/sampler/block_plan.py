"""How a budget of memory is spent on blocks, what that costs and how random it is.

All of it is computed before anything is read, from the shapes of volumes, chunks and crops.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from em_data.errors import BudgetError
from em_data.geometry import Box, Float3, Int3, bounds, float3, int3
from em_data.sampler.crop import CropConfig
from em_data.sampler.lattice import OVERLAP, lattice
from em_data.sampler.places import origins

WINDOW = 1024  # crops within which near-duplicates are counted
FEW = 0.02  # share of near-duplicates within blocks below which more blocks are worth more
SEVERAL = 2  # positions per slot that a small budget should keep
SIDES = (1, 2, 3, 4, 6, 8, 12)  # chunks of a block along each axis
# Bytes served for every byte decoded: the most that leaves few near-duplicates.
REUSE = (2.0, 1.5, 1.2, 1.05, 1.0)
SPENT = 0.95  # of a budget; the rest is for what decoders and allocators take
CHUNKS_IN_FLIGHT = 64  # that make the way to a server worth while
LEAST_IN_FLIGHT = 2  # blocks, so that one is read while the next one waits to be used


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """How a budget of memory is spent. All of it is needed to draw the same samples again."""

    chunks: Int3
    """Chunks that the origins of a block's crops extend over, along (z, y, x)."""
    slots: int
    """Samples of a global batch."""
    positions: int
    """Blocks that each slot keeps at once."""
    crops: int
    """Crops served from a block before it is replaced."""
    in_flight: int = 4
    """Blocks that are read ahead; samples do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class PlanFigures:
    """What a plan costs and how random it is, computed before anything is read."""

    resident_bytes: int
    """Blocks held at once, those on their way included."""
    decoded_per_served: float
    """Bytes of chunks decoded for every byte of crops."""
    near_duplicates: float
    """Expected share of crops that overlap one of the last 1024 by more than half."""


def plan_blocks(
    shapes: Sequence[Int3],
    chunk_vx: Sequence[Int3],
    config: CropConfig,
    *,
    itemsize: float,
    budget_bytes: int,
    slots: int,
    boxes: Sequence[Sequence[Box]] | None = None,
) -> tuple[BlockPlan, PlanFigures]:
    """A plan for a budget of memory, and what it costs.

    Small blocks come from more places at once, large ones hold more crops that have little in common
    and waste less at their borders. Chosen is the plan that serves most bytes for every byte decoded,
    2 at most, with few near-duplicates within blocks, and among those the one with the most blocks.
    Where the budget is too small for that, it is the one with the fewest near-duplicates that keeps
    several blocks per slot.

    Args:
        shapes: voxels of each volume.
        chunk_vx: what is decoded at once in each volume.
        config: what is cut out.
        itemsize: bytes of a voxel, with its labels.
        budget_bytes: memory for blocks and what is made of them.
        slots: samples of a global batch.
        boxes: of the origins of crops in each volume; without them all.
    """
    crop_vx = config.crop_vx
    boxes = boxes or origins(shapes, crop_vx, config.centre_vx)
    found: list[tuple[BlockPlan, list[_Extents]]] = []
    smallest = math.inf
    # Batches being made and used, and what decoding takes, have their place in the budget too.
    beside = 3 * slots * math.prod(crop_vx) * itemsize
    for chunks in itertools.product(SIDES, repeat=3):
        extents = _all_extents(chunks, chunk_vx, boxes, crop_vx)
        held = max(math.prod(e.read_vx) for e in extents) * itemsize
        chunks_read = max(
            math.prod(-(-r // c) for r, c in zip(e.read_vx, chunk, strict=True))
            for e, chunk in zip(extents, chunk_vx, strict=True)
        )
        fitting = int((SPENT * budget_bytes - beside) / held)
        wanted = -(-CHUNKS_IN_FLIGHT // chunks_read)
        in_flight = max(LEAST_IN_FLIGHT, min(wanted, fitting // 8))
        positions = (fitting - in_flight) // slots
        smallest = min(smallest, (held * (slots + LEAST_IN_FLIGHT) + beside) / SPENT)
        if positions >= 1:
            plan = BlockPlan(
                chunks=int3(chunks),
                slots=slots,
                positions=positions,
                crops=_crops(extents, crop_vx, 1.0),
                in_flight=in_flight,
            )
            found.append((plan, extents))
    if not found:
        raise BudgetError(
            f"a memory budget of {budget_bytes / 2**20:.3g} MiB holds no block for each of {slots} "
            f"samples of crop {crop_vx}; give at least {smallest / 2**20:.3g} MiB, or take fewer "
            "samples per batch or smaller crops"
        )
    several = min(SEVERAL, max(plan.positions for plan, _ in found))
    found = [pair for pair in found if pair[0].positions >= several]
    found.sort(key=lambda pair: (-pair[0].positions, math.prod(pair[0].chunks)))
    for reuse in REUSE:
        for plan, extents in found:
            plan = replace(plan, crops=_crops(extents, crop_vx, reuse))
            if _within_blocks(plan, [e.origins_vx for e in extents], crop_vx) <= FEW:
                return plan, _figures(plan, extents, crop_vx, itemsize)
    plan, extents = min(
        found, key=lambda pair: _within_blocks(pair[0], [e.origins_vx for e in pair[1]], crop_vx)
    )
    return plan, _figures(plan, extents, crop_vx, itemsize)


def plan_figures(
    plan: BlockPlan,
    chunk_vx: Sequence[Int3],
    config: CropConfig,
    *,
    itemsize: float,
    boxes: Sequence[Sequence[Box]],
) -> PlanFigures:
    """What a plan costs; arguments as in `plan_blocks`."""
    extents = _all_extents(plan.chunks, chunk_vx, boxes, config.crop_vx)
    return _figures(plan, extents, config.crop_vx, itemsize)


def place_figures(
    chunk_vx: Sequence[Int3], config: CropConfig, boxes: Sequence[Sequence[Box]]
) -> PlanFigures:
    """What independent crops cost that are read one by one."""
    counts = [sum(math.prod(box.size_vx) for box in own) for own in boxes]
    decoded = near = 0.0
    for count, chunk, own in zip(counts, chunk_vx, boxes, strict=True):
        share = count / sum(counts)
        sides = zip(config.crop_vx, chunk, strict=True)
        decoded += share * math.prod((s - 1 + c) / s for s, c in sides)
        near += share * _by_chance(bounds(own).size_vx, config.crop_vx, share)
    return PlanFigures(resident_bytes=0, decoded_per_served=decoded, near_duplicates=near)


class _Extents(NamedTuple):
    available_vx: Int3  # places of crops in the volume
    origins_vx: Int3  # and in a block
    cut: Float3  # how likely the border of the volume cuts a block, on each axis
    read_vx: Int3  # what the crops cover
    decoded_vx: Int3  # the chunks that hold it


def _all_extents(
    chunks: Sequence[int],
    chunk_vx: Sequence[Int3],
    boxes: Sequence[Sequence[Box]],
    crop_vx: Int3,
) -> list[_Extents]:
    pairs = zip(chunk_vx, boxes, strict=True)
    return [_extents(chunks, chunk, bounds(own).size_vx, crop_vx) for chunk, own in pairs]


def _extents(chunks: Sequence[int], chunk_vx: Int3, available: Int3, crop_vx: Int3) -> _Extents:
    """The sizes of a block in the inside of a volume."""
    origins = [min(m * c, n) for m, c, n in zip(chunks, chunk_vx, available, strict=True)]
    read = [o + s - 1 for o, s in zip(origins, crop_vx, strict=True)]
    decoded = [
        min(-(-r // c) * c, n + s - 1)
        for r, c, n, s in zip(read, chunk_vx, available, crop_vx, strict=True)
    ]
    sides = zip(chunks, chunk_vx, available, strict=True)
    cut = float3([min(1.0, (m - 1) * c / n) for m, c, n in sides])
    return _Extents(available, int3(origins), cut, int3(read), int3(decoded))


def _crops(extents: Sequence[_Extents], crop_vx: Int3, reuse: float) -> int:
    """Crops of a block that serve `reuse` bytes for every byte decoded."""
    decoded = sum(math.prod(e.decoded_vx) for e in extents) / len(extents)
    return max(1, round(reuse * decoded / math.prod(crop_vx)))


def _figures(
    plan: BlockPlan, extents: Sequence[_Extents], crop_vx: Int3, itemsize: float
) -> PlanFigures:
    # The largest volume's blocks bound the memory, the mean over volumes the decoding.
    held = max(math.prod(e.read_vx) for e in extents) * itemsize
    decoded = sum(math.prod(e.decoded_vx) for e in extents) / len(extents)
    # Blocks that the border cuts serve as many crops as whole ones do: say half of each is left.
    within = 0.0
    for cut in itertools.product((False, True), repeat=3):
        likely = [
            math.prod(p if c else 1 - p for c, p in zip(cut, e.cut, strict=True)) for e in extents
        ]
        left = [
            int3([-(-o // 2) if c else o for c, o in zip(cut, e.origins_vx, strict=True)])
            for e in extents
        ]
        if any(likely):
            within += sum(likely) / len(extents) * _within_blocks(plan, left, crop_vx)
    chance = sum(_by_chance(e.available_vx, crop_vx, 1 / len(extents)) for e in extents)
    return PlanFigures(
        resident_bytes=round(held * (plan.positions * plan.slots + plan.in_flight)),
        decoded_per_served=decoded / (plan.crops * math.prod(crop_vx)),
        near_duplicates=1 - (1 - within) * (1 - chance / len(extents)),
    )


def _within_blocks(plan: BlockPlan, origins_vx: Sequence[Int3], crop_vx: Int3) -> float:
    """Share of crops that repeat one of the same block, for blocks with so many origins."""
    # Each position is visited once in positions · slots samples, so the window holds this many crops
    # of the same block, but not more than the block has served.
    mates = np.minimum(np.arange(plan.crops), WINDOW / (plan.positions * plan.slots))
    others = max(1, plan.crops - 1)
    near = [lattice(plan.crops, size, crop_vx).near for size in origins_vx]
    return float(np.mean([1 - (1 - mates / (others + 1)) ** each for each in near]))


@lru_cache(maxsize=4096)
def _by_chance(available_vx: Int3, crop_vx: Int3, share: float) -> float:
    """Share of crops that repeat one of the window, where `share` of it are independent of them."""
    likely = [_apart(n, s) for n, s in zip(available_vx, crop_vx, strict=True)]
    pair = float(likely[0] @ (_near(crop_vx) @ likely[2] @ likely[1]))
    return 1 - (1 - pair) ** (WINDOW * share)


def _apart(origins: int, size: int) -> np.ndarray:
    """How likely two of `origins` places are d apart, for each d below half the size of a crop."""
    apart = np.arange(-(-size // 2))
    ways = np.where(apart == 0, 1, 2) * np.clip(origins - apart, 0, None)
    return ways / float(origins) ** 2


@lru_cache
def _near(crop_vx: Int3) -> np.ndarray:
    """Whether crops have more than half in common that are (dz, dy, dx) apart, each below a half."""
    z, y, x = (1 - np.arange(-(-size // 2)) / size for size in crop_vx)
    return (z[:, None, None] * y[:, None] * x > OVERLAP).astype(np.float32)

"""Block shuffle: read each block of chunks once, serve many crops of it from memory.

An independent crop of 64³ voxels from chunks of 64³ decodes eight chunks to use one. Here a block is
read once and serves about as many crops as it holds voxels for, spread over a long time among the
crops of many other blocks, so that a batch still looks as if it came from everywhere.

Who sees what is a pure function. A batch has `slots`; each slot owns a stream of blocks and keeps
`positions` of them at once, visited in a new random order every round. After `crops` rounds a
position takes the next block of its stream; the positions do so one after the other, never all at
once. No two samples of a batch share a block, because no two slots do.

A block is the set of crops whose origins lie in some whole chunks. Blocks may begin at any chunk,
before the volume too, and are drawn in proportion to the places that they hold: every place of the
volume is equally likely.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, int3
from em_data.sampler import CropConfig, Key, PlaceSampler, Sample, Stream, places, random_at
from em_data.volume import Volume

WINDOW = 1024  # crops within which near-duplicates are counted
OVERLAP = 0.5  # of the voxels of a crop: more is a near-duplicate
FEW = 0.09  # share of near-duplicates below which more blocks are worth more than fewer duplicates
UNCHUNKED_VX: Int3 = (32, 128, 128)  # block grid of arrays without chunks
SEVERAL = 4  # positions per slot that a small budget should keep


class BlockId(NamedTuple):
    """The block number `generation` at one of the positions of a slot."""

    slot: int
    position: int
    generation: int


class Block(NamedTuple):
    """The crops of one volume whose origins lie in a range of voxels."""

    volume: int
    origins: Box  # where crops may begin
    box: Box  # what must be read to serve them all


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
    itemsize: int,
    budget_bytes: int,
    slots: int,
    in_flight: int = 8,
) -> tuple[BlockPlan, PlanFigures]:
    """A plan for a budget of memory, and what it costs.

    Every byte decoded is served about once: fewer crops of a block would waste decoding, more would
    repeat themselves. Small blocks come from more places at once, large ones repeat themselves less;
    chosen is the plan with the most blocks among those with few near-duplicates. Where the budget is
    too small for that, it is the one with the fewest near-duplicates that keeps several blocks per
    slot.
    """
    crop_vx = config.crop_vx
    available = places(shapes, crop_vx)
    found: list[tuple[BlockPlan, PlanFigures]] = []
    smallest = math.inf
    for chunks in itertools.product(range(1, 7), repeat=3):
        # The largest volume's blocks bound the memory, the mean over volumes the decoding.
        extents = [
            _extents(chunks, c, n, crop_vx) for c, n in zip(chunk_vx, available, strict=True)
        ]
        held = max(math.prod(e.read_vx) for e in extents) * itemsize
        decoded = sum(math.prod(e.decoded_vx) for e in extents) / len(extents) * itemsize
        smallest = min(smallest, held * (slots + in_flight))
        positions = int((budget_bytes / held - in_flight) // slots)
        if positions < 1:
            continue
        crop_bytes = math.prod(crop_vx) * itemsize
        crops = max(1, round(decoded / crop_bytes))
        # Each position is visited once in positions · slots samples, so the window holds this many
        # crops of the same block, but not more than the block has served.
        mates = np.minimum(np.arange(crops), WINDOW / (positions * slots))
        pair = sum(_overlap(e.origins_vx, crop_vx) for e in extents) / len(extents)
        duplicates = float((1 - (1 - pair) ** mates).mean())
        plan = BlockPlan(chunks=int3(chunks), slots=slots, positions=positions, crops=crops)
        figures = PlanFigures(
            resident_bytes=held * (positions * slots + in_flight),
            decoded_per_served=decoded / (crops * crop_bytes),
            near_duplicates=duplicates,
        )
        found.append((plan, figures))
    if not found:
        raise BoxError(
            f"a memory budget of {budget_bytes / 2**20:.0f} MiB holds no block for each of {slots} "
            f"samples of crop {crop_vx}; give at least {smallest / 2**20:.0f} MiB, or take fewer "
            "samples per batch or smaller crops"
        )
    few = [pair for pair in found if pair[1].near_duplicates <= FEW]
    if few:
        return max(few, key=lambda pair: (pair[0].positions, -pair[1].near_duplicates))
    several = min(SEVERAL, max(plan.positions for plan, _ in found))
    return min(
        (pair for pair in found if pair[0].positions >= several),
        key=lambda pair: pair[1].near_duplicates,
    )


class BlockSampler:
    """Samples drawn by block shuffle, a pure function of (plan, seed, epoch, number)."""

    def __init__(
        self,
        shapes: Sequence[Int3],
        chunk_vx: Sequence[Int3],
        config: CropConfig,
        plan: BlockPlan,
        *,
        seed: int,
        samples_per_epoch: int,
    ) -> None:
        self.config = config
        self.plan = plan
        self.seed = seed
        self.samples_per_epoch = samples_per_epoch
        self.chunk_vx = [int3(chunk) for chunk in chunk_vx]
        self.places = places(shapes, config.crop_vx)
        self._ends = np.cumsum([math.prod(place) for place in self.places])
        # Along each axis of each volume: how many places the blocks up to each beginning hold.
        self._held = [
            [
                np.cumsum([stop - start for start, stop in _ranges(m, chunk, n)])
                for m, chunk, n in zip(plan.chunks, chunks, available, strict=True)
            ]
            for chunks, available in zip(self.chunk_vx, self.places, strict=True)
        ]
        self._order = lru_cache(maxsize=4 * plan.slots)(self._permutation)
        self._block = lru_cache(maxsize=4 * plan.slots * plan.positions)(self._draw_block)

    def __call__(self, key: Key) -> Sample:
        """The sample of `key`."""
        block = self.block(self.block_id(key))
        size = block.origins.size_vx
        offset = random_at(self.seed, Stream.PLACE, key).integers(size).tolist()
        origin = int3([o + d for o, d in zip(block.origins.origin_vx, offset, strict=True)])
        return Sample(block.volume, Box(origin, self.config.crop_vx), key)

    def block_id(self, key: Key) -> BlockId:
        """Which block serves a sample."""
        slot, position, turn = self._turn(key)
        return BlockId(slot, position, turn // self.plan.crops)

    def is_last(self, key: Key) -> bool:
        """Whether the block of a sample serves no later one."""
        return (self._turn(key)[2] + 1) % self.plan.crops == 0

    def block(self, block_id: BlockId) -> Block:
        """Where a block lies."""
        return self._block(block_id)

    def _turn(self, key: Key) -> tuple[int, int, int]:
        """Slot, position, and how many crops the position has served, counted from its stagger."""
        plan = self.plan
        step, slot = divmod(key.epoch * self.samples_per_epoch + key.number, plan.slots)
        round_, visit = divmod(step, plan.positions)
        position = self._order(slot, round_)[visit]
        # Replacements are spread evenly over all positions of all slots.
        stagger = (position * plan.slots + slot) * plan.crops // (plan.positions * plan.slots)
        return slot, position, round_ + stagger

    def _permutation(self, slot: int, round_: int) -> list[int]:
        generator = random_at(self.seed, Stream.ORDER, (slot, round_))
        return generator.permutation(self.plan.positions).tolist()

    def _draw_block(self, block_id: BlockId) -> Block:
        stream = block_id.slot * self.plan.positions + block_id.position
        generator = random_at(self.seed, Stream.BLOCK, (stream, block_id.generation))
        place = generator.integers(self._ends[-1])
        volume = int(np.searchsorted(self._ends, place, side="right"))
        starts, sizes = [], []
        for axis in range(3):
            held = self._held[volume][axis]
            chosen = int(np.searchsorted(held, generator.integers(held[-1]), side="right"))
            m, chunk, n = (
                self.plan.chunks[axis],
                self.chunk_vx[volume][axis],
                self.places[volume][axis],
            )
            start, stop = _range(chosen, m, chunk, n)
            starts.append(start)
            sizes.append(stop - start)
        origins = Box(int3(starts), int3(sizes))
        read = int3([s + c - 1 for s, c in zip(sizes, self.config.crop_vx, strict=True)])
        return Block(volume, origins, Box(origins.origin_vx, read))


def chunks_of(volume: Volume) -> Int3:
    """What is decoded at once: the chunks of a store, or a guess where there are none."""
    chunks = volume.chunk_vx or UNCHUNKED_VX
    return int3([min(c, n) for c, n in zip(chunks, volume.shape, strict=True)])


def choose_sampler(
    volumes: Sequence[Volume],
    config: CropConfig,
    *,
    seed: int,
    samples_per_epoch: int,
    slots: int,
    budget_bytes: int,
) -> PlaceSampler | BlockSampler:
    """Independent places for volumes that fit the budget and can be held, block shuffle for others."""
    shapes = [volume.shape for volume in volumes]
    if sum(volume.nbytes for volume in volumes) <= budget_bytes:
        return PlaceSampler(shapes, config, seed)
    chunk_vx = [chunks_of(volume) for volume in volumes]
    itemsize = max(volume.dtype.itemsize for volume in volumes)
    plan, _ = plan_blocks(
        shapes, chunk_vx, config, itemsize=itemsize, budget_bytes=budget_bytes, slots=slots
    )
    return BlockSampler(
        shapes, chunk_vx, config, plan, seed=seed, samples_per_epoch=samples_per_epoch
    )


class _Extents(NamedTuple):
    origins_vx: Int3  # places of crops in a block
    read_vx: Int3  # what the crops cover
    decoded_vx: Int3  # the chunks that hold it


def _extents(chunks: Sequence[int], chunk_vx: Int3, available: Int3, crop_vx: Int3) -> _Extents:
    """The sizes of a block in the inside of a volume."""
    origins = [min(m * c, n) for m, c, n in zip(chunks, chunk_vx, available, strict=True)]
    read = [o + s - 1 for o, s in zip(origins, crop_vx, strict=True)]
    decoded = [
        min(-(-r // c) * c, n + s - 1)
        for r, c, n, s in zip(read, chunk_vx, available, crop_vx, strict=True)
    ]
    return _Extents(int3(origins), int3(read), int3(decoded))


def _range(index: int, chunks: int, chunk: int, available: int) -> tuple[int, int]:
    """Places along one axis of the block number `index`; the first ones begin before the volume."""
    start = (index - chunks + 1) * chunk
    return max(start, 0), min(start + chunks * chunk, available)


def _ranges(chunks: int, chunk: int, available: int) -> list[tuple[int, int]]:
    count = -(-available // chunk) + chunks - 1
    return [_range(index, chunks, chunk, available) for index in range(count)]


@lru_cache
def _overlap(origins_vx: Int3, crop_vx: Int3) -> float:
    """Probability that two crops of a block are near-duplicates, by 20,000 random pairs."""
    pairs = np.random.default_rng(0).integers(0, origins_vx, (2, 20_000, 3))
    apart = np.abs(pairs[0] - pairs[1]) / np.array(crop_vx)
    return float((np.clip(1 - apart, 0, None).prod(1) > OVERLAP).mean())

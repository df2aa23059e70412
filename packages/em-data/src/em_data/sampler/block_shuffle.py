"""Block shuffle: read each block of chunks once, serve many crops of it from memory.

An independent crop of 64³ voxels from chunks of 64³ decodes eight chunks to use one. Here a block is
read once and serves about as many crops as it holds voxels for, spread over a long time among the
crops of many other blocks, so that a batch still looks as if it came from everywhere.

Who sees what is a pure function. A batch has `slots`; each slot owns a stream of blocks and keeps
`positions` of them at once, visited in a new random order every round. After `crops` rounds a
position takes the next block of its stream; the positions do so one after the other, never all at
once. No two samples of a batch share a block, because no two slots do.

A block is the set of crops whose origins lie in some whole chunks. To draw one, a place is drawn as
for an independent crop, and then one of the blocks that hold it; blocks may begin at any chunk,
before the volume too. So every place is as likely as it is for independent crops. Within a block the
crops lie on a lattice with a random shift, which keeps near-duplicates apart, unless masks or classes
decide about their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from em_data.geometry import Box, Int3, bounds, end_of, int3, intersect, span
from em_data.labels import Labels, PlacedVolume
from em_data.sampler.balance import Aim, aim_at_classes, aim_at_masks
from em_data.sampler.block_plan import BlockPlan, plan_blocks
from em_data.sampler.crop import CropConfig, Sample
from em_data.sampler.lattice import lattice
from em_data.sampler.place_sampler import PlaceSampler, mix_places
from em_data.sampler.places import Counted, Mixture, Region, centred, origins, whole
from em_data.sampler.randomness import Key, Stream, random_at
from em_data.volume import Collection, Volume

ROUNDS = 64  # whose orders are drawn at once
UNCHUNKED_VX: Int3 = (32, 128, 128)  # block grid of arrays without chunks


class BlockId(NamedTuple):
    """The block number `generation` at one of the positions of a slot."""

    slot: int
    position: int
    generation: int


class Turn(NamedTuple):
    """Which crop of which block a sample is."""

    block_id: BlockId
    number: int
    is_last: bool


class Block(NamedTuple):
    """The crops of one volume whose origins lie in a range of voxels."""

    id: BlockId
    attempt: int
    volume: int
    origins: Box  # where crops may begin
    box: Box  # what must be read to serve them all
    drawn: Int3  # the place that the block was drawn for, as likely as any in it


class BlockSampler:
    """Samples drawn by block shuffle, a pure function of (plan, seed, epoch, number).

    Regions, weights, aims and sources are those of `PlaceSampler`.
    """

    def __init__(
        self,
        shapes: Sequence[Int3],
        chunk_vx: Sequence[Int3],
        config: CropConfig,
        plan: BlockPlan,
        *,
        seed: int,
        samples_per_epoch: int,
        regions: Sequence[Region] | None = None,
        weights: Sequence[float] | None = None,
        aims: Sequence[Aim] = (),
        sources: Sequence[str] = (),
        threads: int = 2,
    ) -> None:
        self.config = config
        self.plan = plan
        self.seed = seed
        self.samples_per_epoch = samples_per_epoch
        self.chunk_vx = [int3(chunk) for chunk in chunk_vx]
        self.boxes = origins(shapes, config.crop_vx, config.centre_vx, regions, sources)
        self.mixture = mix_places(self.boxes, config, weights=weights, aims=aims, threads=threads)
        resident = plan.slots * plan.positions + plan.in_flight
        self._orders = lru_cache(maxsize=4 * plan.slots)(self._permutations)
        self._block = lru_cache(maxsize=4 * resident)(self._draw_block)
        self.places = lru_cache(maxsize=resident)(self._places)
        self._spread = lru_cache(maxsize=resident)(self._evenly)

    def __call__(self, key: Key, attempt: int = 0) -> Sample:
        """The sample of `key`, where its block is the first that was drawn."""
        turn = self.turn(key)
        return self.sample(key, turn, self.block(turn.block_id), attempt)

    def sample(self, key: Key, turn: Turn, block: Block, attempt: int = 0) -> Sample:
        """The sample of `key` in its block, or another for it where the ones before were refused."""
        if attempt == 0 and (spread := self._spread(block)) is not None:
            origin = spread[turn.number]
        else:
            _, origin = self.places(block).draw(random_at(self.seed, Stream.PLACE, key, attempt))
        return Sample(block.volume, Box(origin, self.config.crop_vx), key)

    def turn(self, key: Key) -> Turn:
        """Which crop of which block a sample is."""
        plan = self.plan
        step, slot = divmod(key.epoch * self.samples_per_epoch + key.number, plan.slots)
        round_, visit = divmod(step, plan.positions)
        several, which = divmod(round_, ROUNDS)
        position = self._orders(slot, several)[which][visit]
        # Replacements are spread evenly over all positions of all slots.
        stagger = (position * plan.slots + slot) * plan.crops // (plan.positions * plan.slots)
        generation, number = divmod(round_ + stagger, plan.crops)
        return Turn(BlockId(slot, position, generation), number, number == plan.crops - 1)

    def block(self, block_id: BlockId, attempt: int = 0) -> Block:
        """Where a block lies; or another for it where the ones before were refused."""
        return self._block(block_id, attempt)

    def _permutations(self, slot: int, several: int) -> list[list[int]]:
        """The orders of the positions in some rounds, drawn together."""
        generator = random_at(self.seed, Stream.ORDER, (slot, several))
        orders = np.tile(np.arange(self.plan.positions), (ROUNDS, 1))
        return generator.permuted(orders, axis=1).tolist()

    def _draw_block(self, block_id: BlockId, attempt: int) -> Block:
        generator = random_at(self.seed, Stream.BLOCK, self._key(block_id), attempt)
        volume, place = self.mixture.draw(generator)
        low, high = [], []
        before = generator.integers(
            self.plan.chunks
        ).tolist()  # chunks of the block before the place
        for axis, chunk in enumerate(self.chunk_vx[volume]):
            first = place[axis] // chunk - before[axis]
            low.append(first * chunk)
            high.append((first + self.plan.chunks[axis]) * chunk)
        within = span(low, high)
        found = bounds([part for own in self.boxes[volume] if (part := intersect(own, within))])
        sides = zip(end_of(found), self.config.crop_vx, strict=True)
        box = span(found.origin_vx, [end + size - 1 for end, size in sides])
        return Block(block_id, attempt, volume, found, box, place)

    def _evenly(self, block: Block) -> list[Int3] | None:
        """The origins of the crops of a block, where all of it is as likely."""
        kinds = self.places(block).kinds
        if len(kinds) != 1 or getattr(kinds[0][0], "boxes", None) != (block.origins,):
            return None
        size = block.origins.size_vx
        random = random_at(self.seed, Stream.SPREAD, self._key(block.id), block.attempt)
        places = lattice(self.plan.crops, size, self.config.crop_vx).places(random, size)
        return [int3(place) for place in (places + block.origins.origin_vx).tolist()]

    def _key(self, block_id: BlockId) -> tuple[int, int]:
        slot, position, generation = block_id
        return slot * self.plan.positions + position, generation

    def _places(self, block: Block) -> Mixture[Counted]:
        """The places of a block; where aims are to be found in it, their layers are read."""
        return self.mixture.within(block.volume, block.origins)


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
    regions: Sequence[Region] | None = None,
    weights: Sequence[float] | None = None,
    labels: Sequence[Labels | None] | None = None,
    balance: Mapping[str, float] | None = None,
    masks: Sequence[PlacedVolume | None] | None = None,
    exact: bool = False,
    threads: int = 2,
) -> PlaceSampler | BlockSampler:
    """Independent places for volumes that fit the budget and can be held, block shuffle for others.

    Of a collection of images places are always independent: an image has no blocks to share.

    Args:
        volumes: raw volumes.
        config: what is cut out of them.
        seed: of the places.
        samples_per_epoch: samples after which an epoch is counted.
        slots: samples of a global batch.
        budget_bytes: memory for voxels and labels.
        regions: where in each volume crops may lie (`hold_out`); without them anywhere.
        weights: how often each volume is drawn; without them by the number of its places.
        labels: of each volume (`place_labels`): crops have their centres where labels are.
        balance: for a class (a channel of the labels by name, or VALUE or NAME@VALUE of the only
            channel) the share of crops with a voxel of it at the centre; the rest is drawn as
            without it.
        masks: of each volume (`place_mask`): crops have their centres in them.
        exact: independent places, read one by one, for volumes that do not fit the budget too.
        threads: that count the voxels of masks and classes.
    """
    if balance and masks:
        raise ValueError(
            "balance and masks both say where crops have their centres; give one of them, or set "
            "the labels outside of the masks to 0"
        )
    if labels is not None and not isinstance(volumes, Collection):
        regions = regions or [whole(volume.shape) for volume in volumes]
        pairs = zip(regions, labels, strict=True)
        regions = [centred(region, one.covered) if one else region for region, one in pairs]
    aims = list(aim_at_classes(labels or (), balance)) if balance else []
    if masks is not None and any(masks):
        aims = [aim_at_masks(masks)]
    drawn: dict[str, Any] = {"regions": regions, "weights": weights, "aims": aims}
    if isinstance(volumes, Collection):
        return PlaceSampler(volumes.shapes, config, seed, threads=threads, **drawn)
    shapes = [volume.shape for volume in volumes]
    drawn["sources"] = [volume.source for volume in volumes]
    nbytes = sum(volume.nbytes for volume in volumes)
    nbytes += sum(one.nbytes for one in labels or () if one)
    if exact or nbytes <= budget_bytes:
        return PlaceSampler(shapes, config, seed, threads=threads, **drawn)
    chunk_vx = [chunks_of(volume) for volume in volumes]
    plan, _ = plan_blocks(
        shapes,
        chunk_vx,
        config,
        itemsize=bytes_per_voxel(volumes, labels) + len(aims) / 8,  # what is found is kept as bits
        budget_bytes=budget_bytes,
        slots=slots,
        boxes=origins(shapes, config.crop_vx, config.centre_vx, regions, drawn["sources"]),
    )
    return BlockSampler(
        shapes,
        chunk_vx,
        config,
        plan,
        seed=seed,
        samples_per_epoch=samples_per_epoch,
        threads=threads,
        **drawn,
    )


def bytes_per_voxel(volumes: Sequence[Volume], labels: Sequence[Labels | None] | None) -> int:
    """Of a voxel in memory with its labels."""
    own = max(volume.dtype.itemsize for volume in volumes)
    channels = (one.dtype.itemsize * len(one.layers) for one in labels or () if one)
    return own + max(channels, default=0)

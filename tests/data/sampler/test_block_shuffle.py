"""Block shuffle by simulation: who sees what, how often, and how far apart."""

from collections import Counter

import numpy as np
import pytest
from em_data import (
    BlockPlan,
    BlockSampler,
    Box,
    CubeConfig,
    Key,
    PlaceSampler,
    SplitConfig,
    choose_sampler,
    hold_out,
    open_volume,
)

SHAPE, CHUNK, CROP = (40, 70, 64), (8, 16, 16), CubeConfig(size_vx=(6, 12, 12))


def sampler(plan=None, shape=SHAPE, **changes):
    plan = plan or BlockPlan(chunks=(1, 2, 1), slots=4, positions=5, crops=7)
    settings = {"seed": 0, "samples_per_epoch": 1000} | changes
    return BlockSampler([shape], [CHUNK], CROP, plan, **settings)


def keys(count, per_epoch=1000):
    return [Key(*divmod(n, per_epoch)) for n in range(count)]


def test_samples_lie_in_their_blocks_and_blocks_in_the_volume():
    draws = sampler()
    for key in keys(2000):
        sample, block = draws(key), draws.block(draws.turn(key).block_id)
        for axis in range(3):
            inner = sample.box.origin_vx[axis] - block.box.origin_vx[axis]
            assert 0 <= inner <= block.box.size_vx[axis] - sample.box.size_vx[axis]
            assert block.box.origin_vx[axis] >= 0
            assert block.box.origin_vx[axis] + block.box.size_vx[axis] <= SHAPE[axis]
            # Blocks lie on chunks: nothing is decoded that a block beside it decodes again for it.
            assert block.origins.origin_vx[axis] % CHUNK[axis] == 0


def test_no_two_samples_of_a_batch_share_a_block_and_each_block_serves_its_share():
    draws = sampler()
    served, last = Counter(), {}
    for n, key in enumerate(keys(4 * 5 * 7 * 6)):
        block_id = draws.turn(key).block_id
        assert block_id.slot == n % 4
        assert block_id not in last, "a block came back after its last sample"
        served[block_id] += 1
        if draws.turn(key).is_last:
            last[block_id] = n
    complete = [block_id for block_id in last if block_id.generation > 0]
    assert complete and all(served[block_id] == 7 for block_id in complete)


def test_replacements_are_spread_over_time():
    draws = sampler()
    ends = [n // 4 for n, key in enumerate(keys(4 * 5 * 7 * 6)) if draws.turn(key).is_last]
    per_round = np.bincount(np.array(ends) // 5)[1:-1]
    # 20 blocks of 7 rounds each: about 3 are replaced in every round.
    assert per_round.min() >= 2 and per_round.max() <= 4


def test_every_place_is_equally_likely():
    plan = BlockPlan(chunks=(2, 1, 2), slots=4, positions=2, crops=1)  # a new block every time
    draws = sampler(plan, samples_per_epoch=10**6)
    origins = np.array([draws(key).box.origin_vx for key in keys(30_000, 10**6)])
    for axis in range(3):
        n = SHAPE[axis] - CROP.size_vx[axis] + 1
        counts = np.bincount(origins[:, axis], minlength=n)
        expected = len(origins) / n
        assert len(counts) == n
        # Pearson's statistic of a uniform draw: mean n − 1, deviation √(2n − 2).
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert abs(statistic - (n - 1)) < 5 * np.sqrt(2 * n - 2)


def test_larger_volumes_are_seen_more_often():
    shapes, chunks = [SHAPE, (20, 40, 40)], [CHUNK, (4, 20, 20)]
    plan = BlockPlan(chunks=(1, 1, 1), slots=2, positions=2, crops=1)
    draws = BlockSampler(shapes, chunks, CROP, plan, seed=0, samples_per_epoch=10**6)
    share = np.mean([draws(key).volume == 0 for key in keys(8000, 10**6)])
    held = [
        np.prod([n - s + 1 for n, s in zip(shape, CROP.crop_vx, strict=True)]) for shape in shapes
    ]
    assert share == pytest.approx(held[0] / sum(held), abs=0.02)


def test_positions_are_visited_in_a_new_order_every_round():
    draws = sampler(BlockPlan(chunks=(1, 1, 1), slots=1, positions=9, crops=4))
    visits = [draws.turn(key).block_id.position for key in keys(90)]
    rounds = [tuple(visits[i : i + 9]) for i in range(0, 90, 9)]
    assert all(sorted(one) == list(range(9)) for one in rounds)
    assert len(set(rounds)) == len(rounds)


def test_seed_and_plan_decide_and_nothing_else():
    first = [sampler()(key) for key in keys(100)]
    again, other = sampler(), sampler(seed=1)
    assert [again(key) for key in reversed(keys(100))][::-1] == first
    assert [other(key) for key in keys(100)] != first


def test_volumes_that_fit_are_sampled_independently_and_others_by_blocks():
    volume = open_volume("synthetic:shape=64x512x512")
    settings = {"seed": 0, "samples_per_epoch": 10, "slots": 2}
    held = choose_sampler([volume], CROP, budget_bytes=volume.nbytes, **settings)
    assert isinstance(held, PlaceSampler)
    read = choose_sampler([volume], CROP, budget_bytes=volume.nbytes - 1, **settings)
    assert isinstance(read, BlockSampler)


def test_coverage_is_flat_in_regions_and_follows_weights():
    """No place is preferred, wherever the crops are confined to, and volumes come as asked."""
    shapes, chunks = [SHAPE, (20, 40, 40)], [CHUNK, (4, 20, 20)]
    split = hold_out(shapes, CROP, SplitConfig(z=(10, 13)))
    plan = BlockPlan(chunks=(2, 1, 2), slots=4, positions=2, crops=1)  # a new block every time
    settings = {"seed": 0, "samples_per_epoch": 10**6, "regions": split.training}
    draws = BlockSampler(shapes, chunks, CROP, plan, weights=(1, 3), **settings)
    independent = PlaceSampler(shapes, CROP, 0, regions=split.training, weights=(1, 3))
    for sampler in (draws, independent):
        samples = [sampler(key) for key in keys(16_000, 10**6)]
        assert np.mean([s.volume for s in samples]) == pytest.approx(0.75, abs=0.02)
        for volume, places in ((0, [*range(0, 2), *range(16, 35)]), (1, [0, 1])):
            own = np.array([s.box.origin_vx for s in samples if s.volume == volume])
            # Crops of 6 slices end before slice 7, where the gap begins, or start at slice 16.
            assert sorted(set(own[:, 0].tolist())) == places
            for axis in range(3):
                counts = np.unique(own[:, axis], return_counts=True)[1]
                expected = len(own) / len(counts)
                statistic = ((counts - expected) ** 2 / expected).sum()
                n = len(counts)
                assert abs(statistic - (n - 1)) < 5 * np.sqrt(2 * n - 2)


def test_blocks_touch_neither_what_is_held_out_nor_the_gap():
    split = hold_out([SHAPE], CROP, SplitConfig(boxes=(Box((12, 20, 20), (5, 9, 9)),)))
    draws = sampler(regions=split.training)
    seen = np.zeros(SHAPE, bool)
    for key in keys(6000):
        seen[draws(key).box.slices] = True
    closed = seen[12 - 3 : 17 + 3, 20 - 6 : 29 + 6, 20 - 6 : 29 + 6]
    assert not closed.any() and seen.mean() > 0.8

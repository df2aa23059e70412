"""Block shuffle by simulation: who sees what, how often, and how far apart."""

from collections import Counter, deque

import numpy as np
import pytest
from em_data import (
    BlockPlan,
    BlockSampler,
    BoxError,
    CubeConfig,
    Key,
    PlaceSampler,
    choose_sampler,
    open_volume,
    plan_blocks,
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
        sample, block = draws(key), draws.block(draws.block_id(key))
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
        block_id = draws.block_id(key)
        assert block_id.slot == n % 4
        assert block_id not in last, "a block came back after its last sample"
        served[block_id] += 1
        if draws.is_last(key):
            last[block_id] = n
    complete = [block_id for block_id in last if block_id.generation > 0]
    assert complete and all(served[block_id] == 7 for block_id in complete)


def test_replacements_are_spread_over_time():
    draws = sampler()
    ends = [n // 4 for n, key in enumerate(keys(4 * 5 * 7 * 6)) if draws.is_last(key)]
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
    visits = [draws.block_id(key).position for key in keys(90)]
    rounds = [tuple(visits[i : i + 9]) for i in range(0, 90, 9)]
    assert all(sorted(one) == list(range(9)) for one in rounds)
    assert len(set(rounds)) == len(rounds)


def test_seed_and_plan_decide_and_nothing_else():
    first = [sampler()(key) for key in keys(100)]
    again, other = sampler(), sampler(seed=1)
    assert [again(key) for key in reversed(keys(100))][::-1] == first
    assert [other(key) for key in keys(100)] != first


def near_duplicates(draws, count, warm_up, window=1024):
    """Share of samples that overlap one of the `window` before it by more than half."""
    size = np.array(draws.config.crop_vx)
    recent, found = deque(maxlen=window), 0
    for n in range(warm_up + count):
        origin = np.array(draws(Key(0, n)).box.origin_vx)
        if n >= warm_up:
            apart = np.abs(np.array(recent) - origin) / size
            found += bool((np.clip(1 - apart, 0, None).prod(1) > 0.5).any())
        recent.append(origin)
    return found / count


@pytest.mark.parametrize(
    ("crop", "bound"), [((64, 64, 64), 0.10), ((5, 256, 256), 0.13), ((8, 64, 64), 0.05)]
)
def test_two_gigabytes_are_random_enough(crop, bound):
    shape, chunk, config = (4096,) * 3, (64,) * 3, CubeConfig(size_vx=crop)
    plan, figures = plan_blocks([shape], [chunk], config, itemsize=1, budget_bytes=2**31, slots=8)
    assert 2**30 < figures.resident_bytes <= 2**31
    assert figures.decoded_per_served < 1.1
    draws = BlockSampler([shape], [chunk], config, plan, seed=0, samples_per_epoch=10**9)
    measured = near_duplicates(draws, count=1500, warm_up=1500)
    assert measured <= bound
    assert measured <= figures.near_duplicates + 0.03


def test_the_expected_figures_of_a_small_budget_are_met():
    shape, chunk, config = (1024,) * 3, (32,) * 3, CubeConfig(size_vx=(32, 32, 32))
    plan, figures = plan_blocks([shape], [chunk], config, itemsize=1, budget_bytes=2**26, slots=4)
    draws = BlockSampler([shape], [chunk], config, plan, seed=0, samples_per_epoch=10**9)
    measured = near_duplicates(draws, count=1500, warm_up=3000)
    assert measured == pytest.approx(figures.near_duplicates, abs=0.07)


def test_a_budget_for_nothing_is_refused_with_what_it_takes():
    config = CubeConfig(size_vx=(64, 64, 64))
    with pytest.raises(BoxError, match="give at least 31 MiB"):
        plan_blocks([(512,) * 3], [(64,) * 3], config, itemsize=1, budget_bytes=2**20, slots=8)


def test_volumes_that_fit_are_sampled_independently_and_others_by_blocks():
    volume = open_volume("synthetic:shape=64x512x512")
    settings = {"seed": 0, "samples_per_epoch": 10, "slots": 2}
    held = choose_sampler([volume], CROP, budget_bytes=volume.nbytes, **settings)
    assert isinstance(held, PlaceSampler)
    read = choose_sampler([volume], CROP, budget_bytes=volume.nbytes - 1, **settings)
    assert isinstance(read, BlockSampler)

"""Plans against simulations of what they say."""

from collections import deque

import numpy as np
import pytest
from em_data import BlockSampler, BudgetError, CubeConfig, Key, plan_blocks


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
    ("crop", "bound"), [((64, 64, 64), 0.02), ((5, 256, 256), 0.05), ((8, 64, 64), 0.02)]
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
    with pytest.raises(BudgetError, match="give at least 2[67].* MiB"):
        plan_blocks([(512,) * 3], [(64,) * 3], config, itemsize=1, budget_bytes=2**20, slots=8)

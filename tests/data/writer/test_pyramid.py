"""Coarser levels: where their voxels lie and what they hold, against loops over windows."""

import itertools
from collections import Counter

import numpy as np
import pytest
from em_data.writer.pyramid import plan_levels, pool_voxels
from hypothesis import given, settings
from hypothesis import strategies as st


def windows(fine, step):
    """The voxels that become each coarse voxel, with those at an odd end repeated."""
    shape = [-(-n // k) for n, k in zip(fine.shape, step, strict=True)]
    for place in np.ndindex(*shape):
        ranges = (
            [min(i * k + d, n - 1) for d in range(k)]
            for i, k, n in zip(place, step, fine.shape, strict=True)
        )
        yield place, [fine[voxel].item() for voxel in itertools.product(*ranges)]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_pooled_voxels_are_those_of_their_windows(data):
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    step = data.draw(st.tuples(*[st.sampled_from([1, 2])] * 3))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.uint64, np.int8, np.float32]))
    seed = data.draw(st.integers(0, 99))
    fine = np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)
    means, modes, picks = (pool_voxels(fine, step, pool) for pool in ("mean", "mode", "pick"))
    for place, values in windows(fine, step):
        mean = sum(values) / len(values)
        assert means[place] == (mean if dtype == np.float32 else round(mean))
        counts = Counter(values)
        assert counts[modes[place].item()] == max(counts.values())
        assert modes[place] == next(v for v in values if counts[v] == max(counts.values()))
        assert picks[place] == values[0]
    channels = np.stack([fine, fine[::-1]])
    for pool in ("mean", "mode", "pick"):
        both = pool_voxels(channels, step, pool)
        np.testing.assert_array_equal(both[1], pool_voxels(fine[::-1], step, pool))
        assert both.dtype == dtype


def test_the_mean_of_bool_is_what_at_least_half_of_the_voxels_are():
    fine = np.array([[[1, 0, 1, 0, 1], [0, 0, 0, 1, 0]]], bool)
    assert pool_voxels(fine, (1, 2, 2), "mean").tolist() == [[[False, True, True]]]


def test_large_numbers_keep_their_digits():
    cells = np.full((2, 2, 2), 2**53 - 1, np.uint64)
    for pool in ("mean", "mode", "pick"):
        assert pool_voxels(cells, (2, 2, 2), pool) == cells[:1, :1, :1]


@pytest.mark.parametrize("pool", ["mean", "mode", "pick"])
def test_voxels_of_all_levels_lie_where_those_do_that_they_are_made_of(pool):
    """The coordinates of the voxels themselves, pooled: their mean, or that of the first."""
    size, origin = (30.0, 8.0, 8.0), (15.0, 0.0, -4.0)
    levels = plan_levels((40, 300, 200), size, origin, pool)
    assert [level.step for level in levels[1:]] == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = levels[0].shape[axis]
        where = (origin[axis] + size[axis] * np.arange(shape[axis])).reshape(shape)
        for level in levels[1:]:
            step = [k if n > 1 else 1 for k, n in zip(level.step, shape, strict=True)]
            where = pool_voxels(where, tuple(step), "pick" if pool == "pick" else "mean")
            shape = where.shape
            expected = level.origin_nm[axis] + level.voxel_size_nm[axis] * np.arange(shape[axis])
            np.testing.assert_allclose(where.ravel()[:-1], expected[:-1])  # the last may be odd


def test_a_flat_or_small_volume_has_the_levels_it_needs():
    assert len(plan_levels((64, 64, 64), (8, 8, 8), (0, 0, 0), "mean")) == 1
    flat = plan_levels((1, 256, 100), (40, 8, 8), (0, 0, 0), "mean")
    assert [level.shape for level in flat] == [(1, 256, 100), (1, 128, 50), (1, 64, 25)]

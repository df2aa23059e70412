import numpy as np
import pytest
from em_data import Level, VolumeFormatError
from em_data.formats.axes import (
    FARTHEST_NM,
    Wanted,
    first_voxel,
    nearest_level,
    pick_axes,
    units_nm,
    voxel_size,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.permutations("ct"), st.integers(0, 2), st.integers(0, 3))
def test_picking_is_indexing(order, channel, time):
    sizes = {"c": 3, "t": 4}
    axes = [*order, "z", "y", "x"]
    data = np.arange(12 * 24).reshape([sizes[a] for a in order] + [2, 3, 4])
    picked = pick_axes(data, axes, "a", Wanted(None, channel, time))
    at = {"c": channel, "t": time}
    expected = data[tuple(at[a] for a in order)]
    assert picked.shape == expected.shape
    box = (slice(0, 2), slice(1, 3), slice(2, 4))
    np.testing.assert_array_equal(picked[box], expected[box])


def test_other_axes_are_dropped_only_when_they_have_one_element():
    assert pick_axes(np.zeros((1, 2, 3, 4)), "vzyx", "a", Wanted()).shape == (2, 3, 4)
    with pytest.raises(VolumeFormatError, match="axis 'v' of 5"):
        pick_axes(np.zeros((5, 2, 3, 4)), "vzyx", "a", Wanted())
    with pytest.raises(VolumeFormatError, match="no channel axis, but channel=1"):
        pick_axes(np.zeros((2, 3, 4)), "zyx", "a", Wanted(channel=1))
    with pytest.raises(VolumeFormatError, match="no time axis, but time=2"):
        pick_axes(np.zeros((2, 3, 4)), "zyx", "a", Wanted(time=2))
    with pytest.raises(VolumeFormatError, match="names 3 axes"):
        pick_axes(np.zeros((2, 3)), "zyx", "a", Wanted())


def test_nearest_level_is_nearest_in_log_size():
    levels = [Level(f"s{k}", (1, 1, 1), (40.0, 4.0 * 2**k, 4.0 * 2**k)) for k in range(4)]
    for at, level in ((4, 0), (5.5, 0), (5.7, 1), (11.2, 1), (11.4, 2), (500, 3), (0.1, 0)):
        assert nearest_level("a", levels, (40, at, at)) == level
    assert nearest_level("a", levels, None) == 0


def test_units():
    assert units_nm("a", ["nanometer", "µm", "mm"]) == [1, 1e3, 1e6]
    assert units_nm("a", ["nanometer", None, "mm"]) is None
    with pytest.raises(VolumeFormatError, match="unknown unit 'pixel'; wanted one of angstrom"):
        units_nm("a", ["pixel"])


def test_places_and_sizes_beyond_any_stage_are_refused():
    assert first_voxel("a", (FARTHEST_NM, -FARTHEST_NM, 0)) == (FARTHEST_NM, -FARTHEST_NM, 0)
    for place in ((1e308, 0, 0), (0, float("inf"), 0), (0, 0)):
        with pytest.raises(
            VolumeFormatError, match="a: its origin is given as .*none beyond 1e\\+15"
        ):
            first_voxel("a", place)
    with pytest.raises(VolumeFormatError, match="voxel size is given as .*none beyond"):
        voxel_size("a", (1e308, 4, 4))

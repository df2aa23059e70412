"""Boxes: what is inside is read as it is, what is not is refused, and there and back is the same."""

import em_data
import numpy as np
import pytest
from em_data import Box
from hypothesis import example, given, settings
from hypothesis import strategies as st

QUIET = settings(deadline=None, derandomize=True, max_examples=200)
SHAPE = (5, 7, 9)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)
VOLUME = em_data.open_volume(VOXELS, voxel_size_nm=(40.0, 4.0, 4.5), origin_nm=(80.0, -3.0, 0.25))
NUMBER = st.one_of(st.integers(-3, 12), st.sampled_from([10**15, -(10**30), 2**63]))
THREE = st.tuples(NUMBER, NUMBER, NUMBER)
INSIDE = st.tuples(*(st.integers(0, n - 1) for n in SHAPE)).flatmap(
    lambda o: st.tuples(
        st.just(o), st.tuples(*(st.integers(1, n - a) for n, a in zip(SHAPE, o, strict=True)))
    )
)


@QUIET
@given(origin=THREE, size=THREE)
def test_a_box_is_read_or_refused_with_the_axis_that_it_leaves(origin, size):
    ends = [o + s for o, s in zip(origin, size, strict=True)]
    inside = min(origin) >= 0 and min(size) >= 1 and all(np.less_equal(ends, SHAPE))
    if inside:
        slices = tuple(map(slice, origin, ends))
        np.testing.assert_array_equal(VOLUME.read(Box(origin, size)), VOXELS[slices])
        return
    with pytest.raises(em_data.BoxError) as refused:
        VOLUME.read(Box(origin, size))
    assert str(size) in str(refused.value)
    axis = next(
        name
        for name, o, s, n in zip("zyx", origin, size, SHAPE, strict=True)
        if o < 0 or s < 1 or o + s > n
    )
    assert f"on {axis}" in str(refused.value)


@QUIET
@given(box=INSIDE)
def test_a_box_in_nanometres_and_back_is_the_same(box):
    origin, size = box
    origin_nm = [
        o * s + o0 for o, s, o0 in zip(origin, VOLUME.voxel_size_nm, VOLUME.origin_nm, strict=True)
    ]
    size_nm = [n * s for n, s in zip(size, VOLUME.voxel_size_nm, strict=True)]
    assert VOLUME.box_nm(origin_nm, size_nm) == Box(origin, size)
    np.testing.assert_array_equal(
        VOLUME.read_nm(origin_nm, size_nm), VOXELS[Box(origin, size).slices]
    )


@QUIET
@given(box=INSIDE)
def test_a_box_as_slices_and_back_is_the_same(box):
    origin, size = box
    slices = Box(origin, size).slices
    assert Box(tuple(s.start for s in slices), tuple(s.stop - s.start for s in slices)) == box
    np.testing.assert_array_equal(VOLUME[slices], VOXELS[slices])


@QUIET
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    block=st.tuples(*[st.integers(1, 12)] * 3),
)
def test_tiles_meet_every_voxel_once(shape, block):
    met = np.zeros(shape, np.int64)
    for box in em_data.tiles(shape, block):
        assert all(np.less_equal(box.size_vx, block))
        met[box.slices] += 1
    assert (met == 1).all()


@QUIET
@given(
    size=st.tuples(*[st.one_of(st.floats(), st.integers(-3, 50))] * 3),
    origin=st.tuples(*[st.one_of(st.floats(), st.integers(-3, 50))] * 3),
)
@example(size=(8.0, 8.0, 8.0), origin=(float("nan"), 0.0, 0.0))
@example(size=(8.0, 8.0, 8.0), origin=(0.0, float("inf"), 0.0))
def test_a_size_or_origin_that_is_no_number_is_refused_by_name(size, origin):
    farthest = 1e15  # nm
    sound = all(0 < n <= farthest for n in size) and all(abs(n) <= farthest for n in origin)
    try:
        volume = em_data.open_volume(VOXELS, voxel_size_nm=size, origin_nm=origin)
    except ValueError as error:
        assert not sound
        assert "voxel_size_nm" in str(error) or "origin_nm" in str(error)
    else:
        assert sound, f"{size} at {origin} was taken"
        np.testing.assert_allclose(volume.voxel_size_nm, size, rtol=1e-9)

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from em_data import (
    Box,
    BoxError,
    NotFiniteError,
    VolumeFormatError,
    VolumeReadError,
    binned,
    open_volume,
)
from em_data.volume import as_volume
from hypothesis import given
from hypothesis import strategies as st


def test_boxes_outside_and_odd_indices_are_refused():
    volume = open_volume(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(BoxError, match="empty on z"):
        volume[4:8, 0:4, 0:4]
    with pytest.raises(BoxError, match="exceeds volume"):
        volume.read(Box((0, 0, 2), (1, 1, 3)))
    with pytest.raises(TypeError, match="without a step"):
        volume[0:4:2, 0:4, 0:4]
    with pytest.raises(TypeError, match="three slices"):
        volume[0]


@pytest.mark.parametrize("shape", [(0, 4, 4), (10**15,) * 3, (1, 2**31, 2**31 + 1)])
def test_shapes_that_no_volume_has_are_refused(shape):
    array = SimpleNamespace(shape=shape, dtype=np.uint8)
    with pytest.raises(VolumeFormatError, match=r"^raw\.h5 is empty or damaged: its shape is"):
        as_volume(array, "raw.h5", "HDF5")


def test_other_byte_order_becomes_that_of_this_machine():
    data = np.arange(8, dtype=">u2").reshape(2, 2, 2)
    volume = open_volume(data)
    assert volume.dtype == np.uint16 and volume.dtype.isnative
    read = volume[0:2, 0:2, 0:2]
    assert read.dtype.isnative and volume.array.dtype.isnative
    np.testing.assert_array_equal(read, data)


def test_boxes_in_nanometres():
    data = np.arange(10 * 20 * 20).reshape(10, 20, 20)
    volume = open_volume(data, voxel_size_nm=(40, 8, 8), origin_nm=(400, 0, -80))
    np.testing.assert_array_equal(
        volume.read_nm((480, 16, 0), (120, 80, 40)), data[2:5, 2:12, 10:15]
    )
    # A third of a voxel away is the same box, two thirds the next one.
    assert volume.box_nm((493, 18, 2), (120, 80, 40)) == Box((2, 2, 10), (3, 10, 5))
    assert volume.box_nm((507, 22, 6), (120, 80, 40)) == Box((3, 3, 11), (3, 10, 5))
    with pytest.raises(BoxError, match="exceeds volume"):
        volume.read_nm((360, 0, 0), (40, 8, 8))
    with pytest.raises(BoxError, match="above 0"):
        volume.box_nm((480, 16, 0), (0, 80, 40))
    with pytest.raises(VolumeFormatError, match=r"\?voxel_nm=Z,Y,X, or give voxel_size_nm"):
        open_volume(data).read_nm((0, 0, 0), (40, 8, 8))


@given(
    st.tuples(*[st.floats(0.5, 100)] * 3),
    st.tuples(*[st.floats(-1e5, 1e5)] * 3),
    st.tuples(*[st.integers(0, 9)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
)
def test_nanometres_of_voxels_lead_back_to_them(voxel_nm, origin_nm, start, size):
    volume = open_volume(np.zeros((20, 20, 20)), voxel_size_nm=voxel_nm, origin_nm=origin_nm)
    place = [o + i * s for o, i, s in zip(origin_nm, start, voxel_nm, strict=True)]
    extent = [n * s for n, s in zip(size, voxel_nm, strict=True)]
    assert volume.box_nm(place, extent) == Box(start, size)


def test_a_volume_says_what_it_is():
    volume = open_volume(np.zeros((4, 5, 6), np.uint8), voxel_size_nm=(40, 4.5, 4.5))
    assert str(volume) == "array in memory (numpy): 4 × 5 × 6 uint8, 40 × 4.5 × 4.5 nm"
    assert (volume.chunk_vx, volume.shard_vx, volume.compression) == (None, None, None)
    assert "voxel size unknown" in str(open_volume(np.zeros((4, 5, 6))))


def test_errors_of_any_decoder_name_volume_and_box():
    from em_data import Volume

    class Broken:
        shape, dtype = (4, 4, 4), np.dtype(np.uint8)

        def __getitem__(self, index):
            raise EOFError("stream ended")

    with pytest.raises(VolumeReadError, match=r"b\.x: voxels \(1, 1, 1\) at \(3, 0, 0\).*EOFError"):
        Volume(Broken(), "b.x", "test")[3:4, 0:1, 0:1]


def test_a_volume_refuses_what_is_no_number_if_it_is_asked_to():
    voxels = np.zeros((4, 6, 8), np.float32)
    voxels[2, 3, 4:] = np.nan
    voxels[3, 3, 3] = -np.inf
    kept = open_volume(voxels)
    np.testing.assert_array_equal(kept[:, :, :], voxels)
    refusing = replace(kept, nan="refuse")
    assert refusing[0:2, :, :].shape == (2, 6, 8)
    message = r"memory: 3 of 18 voxels .* the first at \(2, 3, 4\); .*data\.nan=mask"
    with pytest.raises(NotFiniteError, match=message):
        refusing.read(Box((2, 2, 3), (2, 3, 3)))
    with pytest.raises(NotFiniteError, match="5 of 192"):
        refusing.held_in_memory()
    with pytest.raises(NotFiniteError, match="5 of 192"):  # through a view of it too
        binned(refusing, (1, 2, 2))[:, :, :]

"""Volumes averaged down as they are read."""

import pickle

import numpy as np
import pytest
from em_data import BoxError, binned, interpolated, open_volume


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("step", [(1, 2, 2), (2, 3, 1), (3, 3, 3)])
def test_voxels_are_means_of_blocks(dtype, step):
    random = np.random.default_rng(0)
    fine = (random.random((7, 19, 23)) * 250).astype(dtype)
    volume = binned(open_volume(fine, voxel_size_nm=(40, 4, 4), origin_nm=(100, 10, 20)), step)
    assert volume.dtype == fine.dtype
    shape = tuple(n // k for n, k in zip(fine.shape, step, strict=True))
    assert volume.shape == shape
    for place in np.ndindex(*shape):
        block = fine[tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, step, strict=True))]
        found = volume[tuple(slice(p, p + 1) for p in place)].item()
        assert abs(found - block.astype(float).mean()) <= (0.5 if fine.dtype.kind == "u" else 1e-4)
    whole = volume[:, :, :]
    np.testing.assert_array_equal(whole[1:2, 1:5, 2:6], volume[1:2, 1:5, 2:6])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:, :, :], whole)


@pytest.mark.parametrize("dtype", ["uint32", "int64", "float64"])
def test_large_numbers_keep_their_digits(dtype):
    fine = np.full((2, 6, 6), 2**31 + 1, np.int64).astype(dtype)
    fine[:, ::2] += 2
    coarse = binned(open_volume(fine), (2, 2, 2))[:, :, :]
    np.testing.assert_array_equal(coarse, np.full((1, 3, 3), 2**31 + 2))


def test_a_bool_is_true_where_half_of_its_voxels_are():
    fine = np.array([[[1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 0]]], bool)
    coarse = binned(open_volume(fine), (1, 2, 2))[:, :, :]
    assert coarse.dtype == bool and coarse.tolist() == [[[False, True, True]]]


def test_a_block_lies_where_its_voxels_lay():
    fine = open_volume(np.zeros((4, 9, 9), np.uint8), voxel_size_nm=(40, 4, 5), origin_nm=(7, 8, 9))
    coarse = binned(fine, (1, 3, 2))
    assert coarse.voxel_size_nm == (40, 12, 10)
    assert coarse.origin_nm == (7, 12, 11.5)  # the centre of the first block
    assert binned(fine, (1, 1, 1)) is fine


@pytest.mark.parametrize("step", [(0, 1, 1), (5, 1, 1)])
def test_what_cannot_be_averaged_is_refused(step):
    with pytest.raises(BoxError, match="cannot be averaged"):
        binned(open_volume(np.zeros((4, 9, 9), np.uint8)), step)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("times", [(1, 2, 2), (2, 3, 1), (1, 4, 4)])
def test_voxels_between_are_interpolated_as_torch_does(dtype, times):
    torch = pytest.importorskip("torch")
    coarse = (np.random.default_rng(0).random((5, 11, 13)) * 250).astype(dtype)
    volume = interpolated(open_volume(coarse), times)
    assert volume.dtype == coarse.dtype
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(coarse.astype(np.float64))[None, None],
        scale_factor=tuple(map(float, times)),
        mode="trilinear",
        align_corners=False,
    )[0, 0].numpy()
    whole = volume[:, :, :]
    assert whole.shape == wanted.shape == volume.shape
    assert np.abs(whole - wanted).max() <= (0.5001 if coarse.dtype.kind == "u" else 1e-4)
    for box in ((slice(1, 2), slice(1, 5), slice(2, 6)), (slice(4, 5), slice(7, 11), slice(0, 3))):
        np.testing.assert_array_equal(whole[box], volume[box])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[:, :, :], whole)


def test_averaging_what_was_interpolated_is_back_in_place():
    coarse = open_volume(
        np.zeros((4, 9, 9), np.uint8), voxel_size_nm=(40, 4, 5), origin_nm=(7, 8, 9)
    )
    fine = interpolated(coarse, (1, 4, 2))
    assert fine.voxel_size_nm == (40, 1, 2.5)
    assert fine.origin_nm == (7, 6.5, 7.75)
    back = binned(fine, (1, 4, 2))
    assert (back.voxel_size_nm, back.origin_nm) == (coarse.voxel_size_nm, coarse.origin_nm)
    with pytest.raises(BoxError, match="at least 1"):
        interpolated(coarse, (1, 0, 2))

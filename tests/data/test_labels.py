import os
from pathlib import Path

import numpy as np
import pytest
from em_data import (
    Box,
    CubeConfig,
    VolumeFormatError,
    open_volume,
    place_labels,
    place_mask,
    place_target,
)

NM = (40, 4, 4)
CUBE = CubeConfig(size_vx=(3, 8, 8))


@pytest.fixture
def raw():
    shape = (20, 64, 64)
    draw = np.random.default_rng(0).integers
    return open_volume(draw(0, 255, shape, np.uint8), voxel_size_nm=NM, origin_nm=(80, 0, 40))


def at(values, origin_vx, size_nm=NM):
    """A volume whose first voxel lies on a voxel of the raw one."""
    origin = [o + p * s for o, p, s in zip((80, 0, 40), origin_vx, NM, strict=True)]
    return open_volume(values, voxel_size_nm=size_nm, origin_nm=tuple(origin))


def test_labels_lie_where_their_origin_puts_them(raw):
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 9, (16, 40, 64)).astype(np.uint16)
    spots = rng.integers(0, 2, (30, 64, 64)).astype(np.uint8)
    labels = place_labels(raw, {"cells": at(cells, (0, 10, 0)), "spots": at(spots, (-3, 0, -5))})
    whole = np.zeros((2, *raw.shape), np.uint16)
    valid = np.zeros((2, *raw.shape), bool)
    whole[0, :16, 10:50] = cells
    valid[0, :16, 10:50] = True
    whole[1, :, :, :59] = spots[3:23, :, 5:]
    valid[1, :, :, :59] = True
    assert labels.dtype == np.uint16
    for box in (
        Box((0, 0, 0), raw.shape),
        Box((13, 5, 50), (6, 20, 14)),
        Box((17, 0, 60), (1, 2, 3)),
    ):
        index = (slice(None), *box.slices)
        np.testing.assert_array_equal(labels.read(box), whole[index])
        np.testing.assert_array_equal(labels.valid(box), valid[index])
    np.testing.assert_array_equal(labels.held_in_memory().read(box), labels.read(box))


def test_labels_that_do_not_belong_are_refused_with_both_sides(raw):
    ones = np.ones((4, 8, 8), np.uint8)
    with pytest.raises(VolumeFormatError, match=r"voxels of 40 × 8 × 8 nm.*has 40 × 4 × 4 nm"):
        place_labels(raw, {"a": at(ones, (0, 0, 0), (40, 8, 8))})
    with pytest.raises(
        VolumeFormatError, match=r"begin at \(80, 2, 40\) nm.*at \(80, 0, 40\) nm: 0.50 .* on y"
    ):
        place_labels(raw, {"a": at(ones, (0, 0.5, 0))})
    with pytest.raises(VolumeFormatError, match=r"does not overlap .*from \(80, 0, 40\) nm"):
        place_labels(raw, {"a": at(ones, (20, 0, 0))})
    with pytest.raises(VolumeFormatError, match="does not say its voxel size"):
        place_labels(raw, {"a": open_volume(ones)})
    with pytest.raises(VolumeFormatError, match="float32; wanted integers"):
        place_labels(raw, {"a": at(ones.astype(np.float32), (0, 0, 0))})
    large, small = at(ones.astype(np.uint64), (0, 0, 0)), at(ones.astype(np.int8), (0, 0, 0))
    with pytest.raises(VolumeFormatError, match="labels 'a' hold uint64, labels 'b' int8: no"):
        place_labels(raw, {"b": small, "a": large})
    plain = open_volume(np.zeros(raw.shape, np.uint8))
    same = place_labels(plain, {"a": open_volume(np.ones(raw.shape, np.uint8))})
    assert same.valid(Box((0, 0, 0), raw.shape)).all()


def test_real_labels_that_are_shorter_than_the_raw_volume():
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("EM_REAL_DATA", beside)) / "vnc_sstem.zarr"
    if not folder.exists():
        pytest.skip("vnc_sstem is not here; set EM_REAL_DATA")
    raw = open_volume(folder / "raw")
    names = ("membranes", "mitochondria")
    labels = place_labels(raw, {name: open_volume(folder / name) for name in names})
    assert labels.covered[0] == Box((0, 0, 0), (16, 1024, 1024))
    valid = labels.valid(Box((14, 500, 500), (4, 8, 8)))
    assert valid[:, :2].all() and not valid[:, 2:].any()


@pytest.mark.parametrize("n, fits", [(400, True), (20_000, False)])
def test_labels_stay_on_the_voxels_of_the_raw_volume_to_their_end(n, fits):
    """4 and 4.0039 nm are one voxel size for 400 voxels; after 20,000 they are 19.5 apart."""
    values = np.zeros((1, 2, n), np.uint8)
    raw = open_volume(values, voxel_size_nm=NM)
    labels = open_volume(values, voxel_size_nm=(40, 4, 4.0039))
    if fits:
        assert place_labels(raw, {"a": labels}).covered == (Box((0, 0, 0), (1, 2, n)),)
    else:
        with pytest.raises(VolumeFormatError, match=r"19\.5 voxels apart after 20000 on x"):
            place_labels(raw, {"a": labels})


def test_a_mask_of_nearly_the_same_voxels_is_followed_to_its_end():
    raw = open_volume(np.zeros((1, 2, 20_000), np.uint8), voxel_size_nm=NM)
    mask = open_volume(np.ones((1, 2, 20_000), np.uint8), voxel_size_nm=(40, 4, 3.996))
    layer = place_mask(raw, mask)
    assert layer.covered == Box((0, 0, 0), (1, 2, 19_980))
    np.testing.assert_array_equal(layer.nearest(2, 10_000, 10_001), [10_010])


def test_a_target_lies_on_the_volume_and_has_its_type(raw):
    values = np.random.default_rng(2).integers(0, 255, (9, 32, 64), np.uint8)
    target = place_target(raw, at(values, (3, 10, 0)))
    assert target.covered == (Box((3, 10, 0), (9, 32, 64)),)
    np.testing.assert_array_equal(
        target.read(Box((4, 12, 5), (2, 8, 8)))[0], values[1:3, 2:10, 5:13]
    )
    wanted = r"target .* holds float32, .* uint8: the same number must be the same grey"
    with pytest.raises(VolumeFormatError, match=wanted):
        place_target(raw, at(values.astype(np.float32), (3, 10, 0)))
    with pytest.raises(VolumeFormatError, match=r"target .*voxels of 40 × 8 × 8 nm"):
        place_target(raw, at(values, (3, 10, 0), (40, 8, 8)))
    with pytest.raises(VolumeFormatError, match="does not overlap"):
        place_target(raw, at(values, (30, 10, 0)))

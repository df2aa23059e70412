from dataclasses import replace

import numpy as np
import pytest
from em_data import GreyRange, Volume, grey_range, nan_share, open_volume


def test_the_range_is_that_of_the_values_whatever_the_type():
    rng = np.random.default_rng(0)
    for dtype, low, high in [(np.uint16, 300, 4095), (np.int16, -200, 50), (np.float32, -1, 1)]:
        voxels = rng.uniform(low, high, (20, 300, 300)).astype(dtype)
        found = grey_range(open_volume(voxels))
        assert found.low == pytest.approx(low, abs=0.02 * (high - low))
        assert found.high == pytest.approx(high, abs=0.02 * (high - low))
        unit = found.unit(voxels)
        assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1
        assert unit.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_values_that_are_counted_have_the_percentiles_of_values_in_order(dtype):
    rng = np.random.default_rng(1)
    for shape in ((1, 3, 2), (1, 40, 50), (8, 100, 128)):  # held in one box
        voxels = rng.normal(20, 40, shape).clip(-128, 127).astype(np.int8).view(np.uint8)
        voxels = voxels.astype(dtype) if dtype != np.int8 else voxels.view(np.int8)
        found = grey_range(open_volume(voxels))
        expected = np.percentile(voxels.astype(float), [0.5, 99.5])
        np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)


def test_missing_slices_dust_and_nan_do_not_count():
    voxels = np.random.default_rng(0).uniform(100, 200, (20, 300, 300)).astype(np.float32)
    voxels[::3] = 0
    voxels[1, 5, 5] = 1e9
    voxels[2, 7, 7] = np.nan
    found = grey_range(open_volume(voxels))
    assert 100 <= found.low < 102 and 198 < found.high <= 200


def test_a_blank_volume_has_a_range_too():
    found = grey_range(open_volume(np.full((4, 8, 8), 7, np.uint8)))
    assert np.isfinite(found.unit(np.full(3, 7, np.uint8))).all()


@pytest.mark.parametrize("chunks", [(64, 64, 64), (1, 200, 200), (200, 200, 200), (5, 33, 70)])
def test_each_box_lies_within_one_chunk(chunks):
    voxels = np.random.default_rng(0).integers(50, 200, (200, 200, 200), np.uint8)
    reads = []

    class Chunked:
        shape, dtype = voxels.shape, voxels.dtype

        def __getitem__(self, index):
            reads.append(tuple((part.start, part.stop) for part in index))
            return voxels[index]

    array = Chunked()
    array.chunks = chunks
    found = grey_range(Volume(array=array, source="counted", format="test"))
    assert 45 < found.low < 55 and 195 < found.high < 205
    assert 30 < len(reads) <= 48
    for read in reads:
        for (start, stop), chunk in zip(read, chunks, strict=True):
            assert start < stop and start // chunk == (stop - 1) // chunk
    assert sum(np.prod([stop - start for start, stop in read]) for read in reads) < 8e6


def test_what_is_no_number_is_black_and_its_share_is_said():
    voxels = np.array([np.nan, -np.inf, 100, 150, np.inf], np.float32)
    assert GreyRange(100, 200).unit(voxels).tolist() == [0, 0, 0, 0.5, 1]
    voxels = np.ones((20, 300, 300), np.float32)
    voxels[:5] = np.nan
    held = open_volume(voxels)
    assert nan_share(held) == pytest.approx(0.25)
    chunked = replace(held, array=Chunked(voxels))
    assert nan_share(chunked) == pytest.approx(0.25, abs=0.15)
    assert nan_share(open_volume(np.ones((2, 3, 4), np.uint8))) == 0


class Chunked:
    """Voxels that are not held in memory."""

    chunks = (1, 64, 64)

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype = voxels, voxels.shape, voxels.dtype

    def __getitem__(self, index):
        return self.voxels[index]

import tracemalloc

import numpy as np
import pytest
from em_data.loader import gather
from em_data.loader.gather import cut


@pytest.fixture(params=["numpy", "compiled"])
def way(request, monkeypatch):
    """Both ways of copying."""
    if request.param == "compiled":
        pytest.importorskip("em_kernels", reason="em-kernels is not installed here")
    monkeypatch.setattr(gather, "kernels_in_use", lambda: request.param == "compiled")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_crops_are_cut_where_they_lie(way, dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, shape).astype(dtype) for shape in ((9, 20, 30), (12, 15, 25))]
    arrays.append(arrays[0][:, ::2, ::-1])  # not dense along x
    chosen = [0, 0, 1, 0, 2, 2, 1]
    sources, expected = [], []
    for index in chosen:
        array = arrays[index]
        z, y, x = (
            int(rng.integers(0, n - s + 1)) for n, s in zip(array.shape, (4, 7, 11), strict=True)
        )
        sources.append((array, (z, y, x)))
        expected.append(array[z : z + 4, y : y + 7, x : x + 11])
    got = np.empty((len(sources), 4, 7, 11), dtype)
    cut(sources, (4, 7, 11), got, threads=2)
    np.testing.assert_array_equal(got, np.stack(expected))


def test_a_volume_that_is_not_dense_along_x_is_not_copied_whole(way):
    array = np.zeros((64, 128, 128), np.uint8, order="F")
    array[3:5, 4:7, 5:9] = np.arange(24).reshape(2, 3, 4)
    got = np.empty((1, 2, 3, 4), np.uint8)
    tracemalloc.start()
    cut([(array, (3, 4, 5))], (2, 3, 4), got)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(got.ravel(), np.arange(24))
    assert peak < array.nbytes / 4

import numpy as np
import pytest
from em_data import crops
from em_data.crops import cut


@pytest.fixture(params=["numpy", "compiled"])
def way(request, monkeypatch):
    """Both ways of copying."""
    if request.param == "compiled":
        pytest.importorskip("em_kernels", reason="em-kernels is not installed here")
    monkeypatch.setattr(crops, "kernels_in_use", lambda: request.param == "compiled")


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

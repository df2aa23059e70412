import gc
import time

import numpy as np
import pytest
from em_data import VolumeFormatError, open_volume
from em_data.formats.npy import PerProcess


def test_npy_is_mapped_and_a_truncated_one_is_named(tmp_path):
    path = tmp_path / "a.npy"
    data = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(path, data)
    np.testing.assert_array_equal(open_volume(path)[0:3, 0:4, 1:5], data[:, :, 1:])
    np.save(path, np.asfortranarray(data))
    np.testing.assert_array_equal(open_volume(path)[1:3, 0:4, 1:5], data[1:, :, 1:])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(VolumeFormatError, match=r"a\.npy"):
        open_volume(path)


def test_a_handle_is_opened_once_by_any_number_of_threads_and_closed():
    from concurrent.futures import ThreadPoolExecutor

    opened, closed = [], []

    class File:
        def __init__(self):
            time.sleep(0.01)  # long enough for the others to come
            opened.append(self)

        def close(self):
            closed.append(1)

    file = PerProcess(File)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda file: file.get(), [file] * 64)) == set(opened)
    assert len(opened) == 1 and not closed
    del file
    gc.collect()
    assert closed == [1]

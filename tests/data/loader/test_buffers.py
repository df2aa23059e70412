import gc

import numpy as np
import torch
from em_data.loader.buffers import Buffers


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_nobody_refers_to_it():
    buffers = Buffers()
    first = buffers.take((4, 5), np.dtype(np.uint16))
    assert first.shape == (4, 5) and first.dtype == np.uint16 and first.flags.writeable
    where = address(first)
    other = buffers.take((4, 5), np.dtype(np.uint16))
    assert address(other) != where
    del first
    assert address(buffers.take((5, 4), np.dtype(np.uint8))) == where


def test_views_and_tensors_keep_their_memory():
    buffers, dtype = Buffers(), np.dtype(np.uint8)
    kept = [buffers.take((8, 8), dtype)[2:6][1:, ::2]]  # a view of a view
    kept.append(torch.from_numpy(buffers.take((8, 8), dtype))[3:].view(-1))
    kept.append(torch.from_numpy(buffers.take((8, 8), dtype))[3:].numpy()[1:])
    for number, one in enumerate(kept, 1):
        one[:] = number
    gc.collect()
    for _ in range(8):
        buffers.take((8, 8), dtype)[:] = 99
    assert all((one == number).all() for number, one in enumerate(kept, 1))


def test_memory_that_is_too_small_is_let_go():
    buffers, dtype = Buffers(), np.dtype(np.uint8)
    for size in (3, 70_000, 5):
        array = buffers.take((size,), dtype)
        array[:] = 1
        assert array.sum() == size


def test_rows_begin_with_a_cache_line_where_that_costs_little():
    buffers = Buffers()
    for x, padded in ((191, 192), (64, 64), (65, 65)):
        array = buffers.take_rows((3, 5, x), np.dtype(np.uint8))
        assert array.shape == (3, 5, x) and array.strides == (5 * padded, padded, 1)
        if padded % 64 == 0:
            assert address(array) % 64 == 0
        array[:] = 7
        assert (array == 7).all()
    wide = buffers.take_rows((2, 2, 127), np.dtype(np.uint16))
    assert wide.strides == (2 * 256, 256, 2)

"""Crops against numpy slices."""

import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from em_kernels.crops import gather_crops

RNG = np.random.default_rng(0)


def draw(shape, dtype=np.uint8):
    return RNG.integers(0, 250, shape).astype(dtype)


def place(block, size, count):
    return np.stack(
        [RNG.integers(0, n - s + 1, count) for n, s in zip(block.shape[-3:], size, strict=True)], 1
    )


def cut(block, origins, size):
    return np.stack(
        [
            block[(..., *(slice(o, o + s) for o, s in zip(origin, size, strict=True)))]
            for origin in origins
        ]
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(9, 31, 40), (2, 9, 31, 40)], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_crops_equal_slices(dtype, shape, threads):
    block = draw(shape, dtype)
    for size in ((1, 1, 1), (3, 8, 16), (9, 31, 40)):
        origins = place(block, size, 20)
        wanted = cut(block, origins, size)
        got = gather_crops(block, origins, size, threads=threads)
        assert got.dtype == block.dtype and np.array_equal(got, wanted)
        out = np.zeros_like(wanted)
        assert gather_crops(block, origins, size, out=out, threads=threads) is out
        assert np.array_equal(out, wanted)


def test_views_and_read_only_blocks():
    whole = draw((3, 20, 30, 40), np.uint16)
    whole.flags.writeable = False
    for block in (whole[:, 2:12, ::2, 5:30], whole.transpose(1, 0, 2, 3), whole[1]):
        origins = place(block, (2, 7, 9), 11)
        assert np.array_equal(
            gather_crops(block, origins.astype(np.int32), (2, 7, 9)), cut(block, origins, (2, 7, 9))
        )


def test_large_batches_and_none():
    block = draw((64, 128, 128))
    origins = place(block, (64, 64, 64), 40)
    assert np.array_equal(
        gather_crops(block, origins, (64, 64, 64), threads=4), cut(block, origins, (64, 64, 64))
    )
    assert gather_crops(block, np.zeros((0, 3), np.int64), (4, 4, 4)).shape == (0, 4, 4, 4)


@pytest.mark.processes
def test_the_gil_is_released():
    """Another thread of Python goes on while one call copies: no pause is as long as the call."""
    block, size = draw((128, 256, 256)), (64, 128, 128)
    origins = place(block, size, 300)
    out = np.zeros((300, *size), np.uint8)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        start = time.perf_counter()
        gather_crops(block, origins, size, out=out)
        end = time.perf_counter()
    finally:
        done.set()
        ticker.join()
    inside = [start, *(moment for moment in ticks if start < moment < end), end]
    longest = max(b - a for a, b in itertools.pairwise(inside))
    assert longest < 0.7 * (end - start)


def test_torch_is_not_imported():
    code = "import sys, em_kernels.crops; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"origins": np.array([[0, 0, 0], [0, 5, 0]])}, IndexError, r"origins\[1\] = 5 on y: a"),
        ({"origins": np.array([[-1, 0, 0]])}, IndexError, r"origins\[0\] = -1 on z"),
        ({"origins": np.zeros((2, 2), int)}, ValueError, r"origins must be integers \(N, 3\)"),
        ({"origins": np.zeros((2, 3))}, ValueError, "origins must be integers"),
        ({"size_vx": (4, 0, 4)}, ValueError, "size_vx must be three positive sizes"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        ({"block": draw((8, 8))}, ValueError, r"block must be \(Z, Y, X\)"),
        ({"block": draw((8, 8, 8))[..., ::2]}, ValueError, "block must be dense along x"),
        ({"block": np.empty((8, 8, 8), object)}, TypeError, "block must hold numbers, got object"),
        ({"out": np.empty((1, 4, 4, 5), np.uint8)}, ValueError, "out must be dense uint8 of shape"),
        ({"out": np.empty((1, 4, 4, 4))}, ValueError, "got float64"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"block": draw((8, 8, 8)), "origins": np.zeros((1, 3), int), "size_vx": (4, 4, 4)}
    with pytest.raises(error, match=message):
        gather_crops(**arguments | change)


def test_overlap_is_refused():
    block = draw((8, 8, 8))
    with pytest.raises(ValueError, match="must not overlap"):
        gather_crops(block, np.zeros((2, 3), int), (4, 8, 8), out=block.reshape(2, 4, 8, 8))

"""The direct reader against zarr-python's own reading, on stores written by zarr-python."""

import os
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from em_data import VolumeReadError
from em_data.formats.zarr_chunks import chunk_reader
from em_data.geometry import Box
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec

SHAPE = (13, 40, 37)
V3 = {
    "zstd": {"compressors": ZstdCodec(level=3)},
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")},
    "gzip": {"compressors": GzipCodec()},
    "raw": {"compressors": None},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "sharded": {"shards": (8, 32, 20), "compressors": ZstdCodec()},
    "sharded raw": {"shards": (8, 32, 20), "compressors": None},
    "dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
}
V2 = {
    "blosc": {"compressors": numcodecs.Blosc("zstd")},
    "zlib": {"compressors": numcodecs.Zlib()},
    "lz4": {"compressors": numcodecs.LZ4()},
    "raw": {"compressors": None},
    "slashes": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}
CASES = [(3, name) for name in V3] + [(2, name) for name in V2]


def make(path, zarr_format, name, dtype="<u2"):
    settings = (V3 if zarr_format == 3 else V2)[name]
    if zarr_format == 3:
        dtype = dtype.lstrip("<>")  # the codec decides about byte order
    array = zarr.create_array(
        path,
        shape=SHAPE,
        chunks=(4, 16, 10),
        dtype=dtype,
        zarr_format=zarr_format,
        fill_value=7,
        **settings,
    )
    rng = np.random.default_rng(0)
    array[:8] = rng.integers(0, np.iinfo(array.dtype).max, (8, *SHAPE[1:])).astype(array.dtype)
    return zarr.open_array(path, mode="r")  # the last slices are absent: fill value


@pytest.mark.parametrize(("zarr_format", "name"), CASES)
@pytest.mark.parametrize("dtype", ["|u1", "<u2"])
def test_boxes_equal_zarrs_own(tmp_path, zarr_format, name, dtype):
    if dtype == "|u1":
        dtype = "u1"
    array = make(tmp_path / "a.zarr", zarr_format, name, dtype)
    reader = chunk_reader(array)
    assert reader is not None
    rng = np.random.default_rng(1)
    for _ in range(20):
        low = [int(rng.integers(0, n)) for n in SHAPE]
        size = [int(rng.integers(1, n - o + 1)) for n, o in zip(SHAPE, low, strict=True)]
        box = Box(tuple(low), tuple(size))
        got, expected = reader.read(box), array[box.slices]
        assert got.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, expected)
        there = np.empty_like(got)
        assert reader.read(box, there) is there
        np.testing.assert_array_equal(there, expected)


def test_big_endian_of_v2(tmp_path):
    array = make(tmp_path / "a.zarr", 2, "blosc", ">u2")
    whole = Box((0, 0, 0), SHAPE)
    np.testing.assert_array_equal(chunk_reader(array).read(whole), array[:])


def test_systems_without_vectored_reads_are_left_to_zarr(tmp_path, monkeypatch):
    array = make(tmp_path / "a.zarr", 3, "zstd")
    assert chunk_reader(array) is not None
    monkeypatch.delattr(os, "readv")  # as on Windows
    assert chunk_reader(array) is None


def test_what_it_does_not_know_is_left_to_zarr(tmp_path):
    store = zarr.storage.MemoryStore()
    memory = zarr.create_array(store, shape=(4, 4, 4), dtype="u1")
    assert chunk_reader(memory) is None
    assert chunk_reader(np.zeros((4, 4, 4))) is None
    fortran = zarr.create_array(
        tmp_path / "f.zarr", shape=(4, 4, 4), dtype="u1", zarr_format=2, order="F"
    )
    assert chunk_reader(fortran) is None
    filtered = zarr.create_array(
        tmp_path / "d.zarr",
        shape=(4, 4, 4),
        dtype="u1",
        zarr_format=2,
        filters=[numcodecs.Delta("u1")],
    )
    assert chunk_reader(filtered) is None


@pytest.mark.parametrize(
    ("zarr_format", "name"),
    [
        (3, "zstd"),
        (3, "blosc"),
        (3, "gzip"),
        (3, "raw"),
        (3, "sharded"),
        (2, "blosc"),
        (2, "zlib"),
        (2, "lz4"),
    ],
)
@pytest.mark.parametrize("kept", [0, 3, 0.5, -1])
def test_a_truncated_chunk_is_an_error(tmp_path, zarr_format, name, kept):
    array = make(tmp_path / "a.zarr", zarr_format, name)
    reader = chunk_reader(array)
    reader.read(Box((0, 0, 0), SHAPE))  # the buffer holds something that must not come back
    shard = (0, 0, 0)
    path = Path(reader.folder) / reader.metadata.encode_chunk_key(shard)
    data = path.read_bytes()
    size = int(len(data) * kept) if isinstance(kept, float) else kept
    path.write_bytes(data[:size])
    with pytest.raises(VolumeReadError, match=str(path)):
        reader.read(Box((0, 0, 0), (4, 16, 10)))


@pytest.mark.parametrize("name", ["zstd", "blosc", "gzip"])
def test_a_chunk_of_another_size_is_an_error(tmp_path, name):
    array = make(tmp_path / "a.zarr", 3, name)
    reader = chunk_reader(array)
    path = Path(reader.folder) / reader.metadata.encode_chunk_key((0, 0, 0))
    for size in (100, 1279, 1281, 5000):
        path.write_bytes(reader.decoder.encode(np.ones(size, np.uint8)))
        with pytest.raises(VolumeReadError, match="cannot be decoded|fewer than"):
            reader.read(Box((0, 0, 0), (4, 16, 10)))

"""`CheckedStore` on its own; what it means for volumes is in test_ome_zarr and test_remote."""

import asyncio

import pytest
from em_data import VolumeReadError
from em_data.formats.location import Place
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype


@pytest.fixture
def get(tmp_path):
    def get(key, byte_range=None, blosc=False):
        store = Place(str(tmp_path)).store()
        store.blosc = blosc
        value = asyncio.run(store.get(key, default_buffer_prototype(), byte_range))
        return None if value is None else value.to_bytes()

    return get


def test_answers_that_are_too_short_are_refused(tmp_path, get):
    (tmp_path / "c").write_bytes(b"0123456789")
    assert get("c") == b"0123456789" and get("absent") is None
    assert get("c", RangeByteRequest(2, 5)) == b"234"
    assert get("c", SuffixByteRequest(10)) == b"0123456789"
    assert get("c", OffsetByteRequest(8)) == b"89"
    for short in (RangeByteRequest(8, 11), RangeByteRequest(10, 11), SuffixByteRequest(11)):
        with pytest.raises(VolumeReadError, match=f"{tmp_path}/c is truncated: wanted at least"):
            get("c", short)
    (tmp_path / "c").write_bytes(b"")
    with pytest.raises(VolumeReadError, match="wanted at least 1 bytes, got 0"):
        get("c")
    (tmp_path / "zarr.json").write_bytes(b"")
    assert get("zarr.json") == b""  # metadata is judged by who parses it


def test_blosc_frames_must_have_the_length_in_their_header(tmp_path, get):
    import numcodecs

    frame = bytes(numcodecs.Blosc().encode(bytes(range(200)) * 20))
    (tmp_path / "c").write_bytes(frame)
    assert get("c", blosc=True) == frame
    (tmp_path / "c").write_bytes(frame[:-1])
    assert get("c") == frame[:-1]
    with pytest.raises(VolumeReadError, match=f"at least {len(frame)} bytes, got {len(frame) - 1}"):
        get("c", blosc=True)


def test_place(tmp_path):
    (tmp_path / "info").write_text("{}")
    place = Place(f"{tmp_path}/")
    assert place.found(["info", "zarr.json"]) == {"info"}
    assert (place / "a" / "b").address == f"{tmp_path}/a/b"
    assert not place.is_remote and Place("s3://bucket").is_remote

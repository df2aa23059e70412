import itertools
import json

import numpy as np
import pytest
from em_data import (
    Box,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
    open_volume,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "scale",
    [
        {"encoding": "raw"},
        {"encoding": "raw", "sharding": True},
        {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]},
        {"encoding": "jpeg", "jpeg_quality": 100},
    ],
)
def test_encodings_over_http_and_from_a_folder(http_server, write_precomputed, voxels, scale):
    encoding, scale = scale["encoding"], dict(scale)
    if scale.pop("sharding", False):
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1",
            **{"preshift_bits": 1, "minishard_bits": 1, "shard_bits": 1, "hash": "identity"},
            **{"minishard_index_encoding": "gzip", "data_encoding": "gzip"},
        }
    dtype = np.uint32 if encoding == "compressed_segmentation" else np.uint8
    data = voxels((11, 40, 50), dtype)
    path = write_precomputed(data, "volume", offset=(10, 20, 30), **scale)
    for address in (
        path,
        f"precomputed://{path}",
        f"precomputed://file://{path}",
        f"precomputed://{http_server.url}/volume",
        f"{http_server.url}/volume",
    ):
        volume = open_volume(address)
        assert (volume.shape, volume.dtype, volume.format) == (data.shape, dtype, "precomputed")
        assert volume.source == str(address)
        assert (volume.voxel_size_nm, volume.origin_nm) == ((40, 8, 8), (1200, 160, 80))
        assert (volume.chunk_vx, volume.compression) == ((4, 16, 16), encoding)
        assert (volume.shard_vx is not None) == ("sharding" in scale)
        read = volume[3:9, 5:33, 17:50]
        if encoding == "jpeg":
            assert np.abs(read.astype(int) - data[3:9, 5:33, 17:50]).mean() < 2
        else:
            np.testing.assert_array_equal(read, data[3:9, 5:33, 17:50])


NUMBERS = itertools.count()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_box(write_precomputed, voxels, data):
    shape = tuple(data.draw(st.integers(1, 30)) for _ in range(3))
    chunk = [data.draw(st.integers(1, 16)) for _ in range(3)]
    offset = [data.draw(st.integers(-50, 50)) for _ in range(3)]
    written = voxels(shape, data.draw(st.sampled_from([np.uint8, np.uint16, np.float32])))
    name = f"volume-{next(NUMBERS)}"
    volume = open_volume(write_precomputed(written, name, offset=offset, chunk_size=chunk))
    origin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(shape, origin, strict=True))
    np.testing.assert_array_equal(volume.read(Box(origin, size)), written[Box(origin, size).slices])


def test_levels_share_one_frame(write_precomputed, voxels):
    data = voxels((11, 40, 50))
    path = write_precomputed(data, "volume", offset=(10, 20, 30))
    write_precomputed(
        data[:, ::2, ::2], "volume", resolution=(16, 16, 40), offset=(5, 10, 30), level=1
    )
    fine = open_volume(path)
    coarse = open_volume(path, at_nm=(40, 14, 14))
    assert [level.voxel_size_nm for level in fine.levels] == [(40, 8, 8), (40, 16, 16)]
    assert (fine.level, coarse.level, coarse.shape) == (0, 1, (11, 20, 25))
    np.testing.assert_array_equal(coarse[2:5, 0:20, 1:25], data[2:5, ::2, 2::2])
    # The first coarse voxel is centred between the first two fine ones.
    assert (fine.origin_nm, coarse.origin_nm) == ((1200, 160, 80), (1200, 164, 84))


def test_channels(write_precomputed, voxels):
    data = voxels((3, 5, 16, 20))
    path = write_precomputed(data, "volume")
    np.testing.assert_array_equal(
        open_volume(path).read_channels(Box((1, 0, 3), (3, 9, 17))), data[:, 1:4, :9, 3:]
    )
    np.testing.assert_array_equal(
        open_volume(path, channel=2)[1:4, 0:9, 3:20], data[2, 1:4, :9, 3:]
    )


def test_absent_chunk_is_zero_and_a_damaged_one_an_error(write_precomputed, voxels):
    path = write_precomputed(voxels((8, 16, 16)), "volume")
    volume = open_volume(path)
    (path / "8_8_40" / "0-16_0-16_0-4").unlink()
    assert not volume[0:4, 0:16, 0:16].any()
    chunk = next(path.glob("8_8_40/0-16_0-16_4-8*"))
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(VolumeReadError, match=r"\(1, 16, 16\) at \(4, 0, 0\).*0-16_0-16_4-8"):
        volume[4:5, 0:16, 0:16]


def test_a_slice_that_no_memory_holds_is_an_error(write_precomputed, voxels):
    path = write_precomputed(voxels((8, 16, 16)), "volume")
    info = json.loads((path / "info").read_text())
    info["scales"][0]["size"] = [10**9, 10**9, 1]
    (path / "info").write_text(json.dumps(info))
    volume = open_volume(path)
    with pytest.raises(MemoryError):
        volume.read(Box((0, 0, 0), (1, 10**9, 10**9)))


def test_what_is_not_there_or_not_understood(http_server, tmp_path, free_port):
    with pytest.raises(VolumeNotFoundError, match="no file 'info'"):
        open_volume(f"precomputed://{http_server.url}/nothing")
    with pytest.raises(VolumeNotFoundError, match="no file 'info'"):
        open_volume(f"precomputed://{tmp_path}/nothing")
    with pytest.raises(VolumeReadError, match="PERMISSION_DENIED"):
        open_volume(f"precomputed://{http_server.url}/forbidden")
    with pytest.raises(VolumeReadError, match=rf"{free_port}/info cannot be fetched.*(?i:connect)"):
        open_volume(f"precomputed://http://127.0.0.1:{free_port}")
    info = tmp_path / "volume" / "info"
    info.parent.mkdir()
    for text, message in (
        ("<html>", "is no JSON"),
        ("[]", "wanted an object"),
        (
            json.dumps({"@type": "neuroglancer_skeletons"}),
            "neuroglancer_skeletons; wanted a volume",
        ),
        (json.dumps({"scales": []}), "info: 'scales' is empty"),
        (json.dumps({"scales": [{"key": "a"}]}), "info is not understood .*resolution"),
    ):
        info.write_text(text)
        with pytest.raises(VolumeFormatError, match=message):
            open_volume(tmp_path / "volume")

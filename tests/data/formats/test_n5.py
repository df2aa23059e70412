import json

import numpy as np
import pytest
from em_data import VolumeFormatError, VolumeNotFoundError, VolumeReadError, open_volume


@pytest.mark.parametrize(
    ("compression", "name"),
    [
        ({"type": "raw"}, "raw"),
        ({"type": "gzip"}, "gzip"),
        ({"type": "bzip2"}, "bzip2"),
        ({"type": "zstd"}, "zstd"),
        ({"type": "blosc", "cname": "lz4", "clevel": 3, "shuffle": 1}, "blosc lz4"),
    ],
)
def test_one_dataset(http_server, write_n5, voxels, compression, name):
    data = voxels((11, 40, 50), np.uint16)
    path = write_n5(data, "a.n5/raw", compression)
    for address in (path, f"n5://{path}", f"n5://{http_server.url}/a.n5/raw"):
        volume = open_volume(address)
        assert (volume.format, volume.dtype, volume.chunk_vx) == ("N5", np.uint16, (4, 8, 16))
        assert (volume.compression, volume.voxel_size_nm) == (name, None)
        np.testing.assert_array_equal(volume[3:9, 5:33, 17:50], data[3:9, 5:33, 17:50])


def test_n5_without_its_scheme_is_found_on_a_server(http_server, write_n5, voxels):
    data = voxels((6, 10, 20))
    write_n5(data, "raw")
    np.testing.assert_array_equal(open_volume(f"{http_server.url}/raw")[0:6, 0:10, 0:20], data)


SIZE, ORIGIN = (40.0, 8.0, 8.0), (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("attributes", "size", "origin"),
    [
        ({"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}, SIZE, ORIGIN),
        ({"pixelResolution": {"dimensions": [0.008, 0.008, 0.04], "unit": "um"}}, SIZE, ORIGIN),
        ({"resolution": [8, 8, 40], "units": ["nm", "nm", "nm"]}, SIZE, ORIGIN),
        ({"resolution": [8, 8, 40]}, None, ORIGIN),  # of an unknown unit
        (
            {
                "transform": {
                    "axes": ["z", "y", "x"],
                    "scale": [40, 8, 8],
                    "translate": [80, 4, 0],
                    "units": ["nm", "nm", "nm"],
                }
            },
            SIZE,
            (80, 4, 0),
        ),
    ],
)
def test_units_in_use(write_n5, voxels, attributes, size, origin):
    volume = open_volume(write_n5(voxels((4, 8, 8)), "raw", **attributes))
    assert (volume.voxel_size_nm, volume.origin_nm) == (size, origin)


def test_levels(tmp_path, write_n5, voxels):
    data = voxels((8, 32, 32))
    write_n5(data, "raw/s0", downsamplingFactors=[1, 1, 1])
    write_n5(data[:, ::2, ::2], "raw/s1", downsamplingFactors=[2, 2, 1])
    group = {"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}
    (tmp_path / "raw" / "attributes.json").write_text(json.dumps(group))
    volume = open_volume(tmp_path / "raw")
    assert [level.voxel_size_nm for level in volume.levels] == [(40, 8, 8), (40, 16, 16)]
    coarse = open_volume(tmp_path / "raw", at_nm=(40, 20, 20))
    assert (coarse.level, coarse.origin_nm) == (1, (0, 4, 4))
    np.testing.assert_array_equal(coarse[0:8, 0:16, 3:16], data[:, ::2, 6::2])


def test_levels_that_state_sizes_themselves(write_n5, voxels):
    data = voxels((8, 32, 32))
    fine = {"pixelResolution": {"dimensions": [8, 8, 40], "unit": "nm"}}
    coarse = {"pixelResolution": {"dimensions": [16, 16, 40], "unit": "nm"}}
    write_n5(data, "a/s0", **fine)
    write_n5(data[:, ::2, ::2], "a/s1", downsamplingFactors=[2, 2, 1], **fine)
    write_n5(data, "b/s0", **fine)
    path = write_n5(data[:, ::2, ::2], "b/s1", **coarse).parent
    (path / "attributes.json").write_text('{"scales": [[1, 1, 1], [2, 2, 1]]}')
    for name in ("a", "b"):
        volume = open_volume(f"n5://{path.parent / name}", at_nm=(40, 16, 16))
        assert (volume.level, volume.voxel_size_nm, volume.origin_nm) == (
            1,
            (40, 16, 16),
            (0, 4, 4),
        )


def test_channels(write_n5, voxels):
    data = voxels((3, 5, 16, 20))
    path = write_n5(data, "raw", axes=["x", "y", "z", "c"])
    np.testing.assert_array_equal(
        open_volume(path, channel=2)[1:4, 0:9, 3:20], data[2, 1:4, :9, 3:]
    )
    with pytest.raises(VolumeFormatError, match="4 axes and no attribute 'axes'"):
        open_volume(write_n5(data, "unnamed"))


@pytest.mark.parametrize(
    "attributes",
    [
        {"pixelResolution": {"dimensions": [8, 8], "unit": "nm"}},
        {"axes": ["x", "y"]},
        {"resolution": ["a", 8, 8], "units": ["nm", "nm", "nm"]},
    ],
)
def test_attributes_that_make_no_sense_are_named(write_n5, voxels, attributes):
    path = write_n5(voxels((4, 8, 8)), "raw", **attributes)
    with pytest.raises(VolumeFormatError, match=r"raw/: its attributes are not .*ValueError"):
        open_volume(path)


def test_what_is_not_there_or_damaged(tmp_path, write_n5, voxels):
    with pytest.raises(VolumeNotFoundError, match=r"no attributes\.json"):
        open_volume(f"n5://{tmp_path}/nothing")
    path = write_n5(voxels((8, 16, 16)), "a.n5/raw")
    (tmp_path / "a.n5" / "attributes.json").write_text('{"n5": "2.0.0"}')
    with pytest.raises(VolumeFormatError, match="without the levels s0"):
        open_volume(tmp_path / "a.n5")
    volume = open_volume(path)
    (path / "0" / "0" / "0").unlink()
    assert not volume[0:4, 0:8, 0:16].any()  # absent: the fill value
    block = path / "0" / "0" / "1"
    block.write_bytes(block.read_bytes()[:30])
    with pytest.raises(VolumeReadError, match=r"\(1, 8, 8\) at \(4, 0, 0\).*raw/0/0/1"):
        volume[4:5, 0:8, 0:8]
    (path / "attributes.json").write_text(json.dumps({"dimensions": [1, 1, 1], "compression": {}}))
    with pytest.raises(VolumeFormatError, match="attributes are not understood"):
        open_volume(path)
    whole = {"dimensions": [1, 1, 1], "compression": {"type": "future"}}
    (path / "attributes.json").write_text(json.dumps(whole))
    with pytest.raises(VolumeFormatError, match="metadata is not understood by tensorstore"):
        open_volume(path)

"""Volumes are served as precomputed: tensorstore, which knows the format, reads them back."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorstore
from em_data import Box, new_store, open_volume
from em_train.look.voxel_server import LARGEST_BYTES, SMALLEST_BYTES, ServedVolume, VoxelServer


def read(address, level=0):
    """(c, z, y, x) voxels of a level."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": address.removeprefix("precomputed://"),
        "scale_index": level,
    }
    return tensorstore.open(spec, read=True).result().read().result().T


def get(server, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        return json.loads(answer.read())


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    shape = (20, 130, 100)
    raw = rng.integers(0, 255, (2, *shape)).astype(np.uint8)
    classes = rng.integers(0, 3, shape).astype(np.uint8)
    with new_store(tmp_path / "v.zarr") as store:
        image = store.add_image(shape, np.uint8, (16, 4, 4), channels=("a", "b"))
        image.write(Box((0, 0, 0), shape), raw)
        label = store.add_image(shape, np.uint8, (16, 4, 4), label="l", chunk_vx=(4, 32, 32))
        label.write(Box((0, 0, 0), shape), classes)
    return tmp_path / "v.zarr", raw, classes


def test_every_level_channel_and_label_arrives(store):
    path, raw, classes = store
    volumes = [
        ServedVolume(str(path), channels=2),
        ServedVolume(f"{path}/labels/l", is_label=True, names={1: "one", 2: "two"}),
    ]
    with VoxelServer(volumes) as server:
        np.testing.assert_array_equal(read(server.address(0)), raw)
        for level in range(len(volumes[0].levels)):
            for channel in range(2):
                at_nm = volumes[0].levels[level][0].voxel_size_nm
                want = open_volume(path, channel=channel, at_nm=at_nm)
                np.testing.assert_array_equal(
                    read(server.address(0), level)[channel], want[:, :, :]
                )
        np.testing.assert_array_equal(read(server.address(1))[0], classes)
        base = server.address(1).partition(str(server.server_port))[2]
        info = get(server, f"{base}/info")
        assert info["type"] == "segmentation" and info["data_type"] == "uint8"
        assert info["scales"][1]["resolution"] == [8, 8, 16]
        names = get(server, f"{base}/{info['segment_properties']}/info")["inline"]
        assert names["ids"] == ["1", "2"] and names["properties"][0]["values"] == ["one", "two"]
    assert len(volumes[0].levels) == 3


def test_who_does_not_know_the_token_or_asks_for_what_is_not_there_gets_nothing(store):
    with VoxelServer([ServedVolume(str(store[0]), channels=2)]) as server:
        base = f"/{server.token}"
        assert get(server, f"{base}/0/info")["num_channels"] == 2
        for path in (
            *("/", "/0/info", "/else/0/info", f"{base}/1/info", f"{base}/0/names/info"),
            *(f"{base}/0/9/0-1_0-1_0-1", f"{base}/0/0/0-101_0-1_0-1", f"{base}/0/0/5-5_0-1_0-1"),
            *(f"{base}/0/0/../../info", f"{base}/0/0/0-1_0-1", f"{base}"),
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(server, path)


def test_what_cannot_be_read_is_said_and_not_made_up(tmp_path, capsys):
    with new_store(tmp_path / "a.zarr") as store:
        store.add_image((4, 8, 8), np.uint8, (8, 8, 8)).write(
            Box((0, 0, 0), (4, 8, 8)), np.ones((4, 8, 8), np.uint8)
        )
    (tmp_path / "a.zarr/s0/c/0/0/0").write_bytes(b"no chunk")
    with (
        VoxelServer([ServedVolume(str(tmp_path / "a.zarr"))]) as server,
        pytest.raises(urllib.error.HTTPError, match="404"),
    ):
        get(server, f"/{server.token}/0/0/0-8_0-8_0-4")
    assert "a.zarr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "is_label", "served"),
    [
        *(("bool", False, "uint8"), ("float64", False, "float32"), ("int64", False, "float32")),
        *(("uint64", False, "float32"), ("uint16", False, "uint16"), ("int8", False, "int8")),
        *(("uint64", True, "uint64"), ("int32", True, "uint32"), ("bool", True, "uint8")),
    ],
)
def test_types_become_those_that_neuroglancer_knows(tmp_path, dtype, is_label, served):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    volume = ServedVolume(str(tmp_path / "a.npy"), is_label=is_label)
    assert volume.info()["data_type"] == served
    with VoxelServer([volume]) as server:
        np.testing.assert_array_equal(read(server.address(0))[0], values.astype(served))


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3000, 3000), (300, 300, 300)])
@pytest.mark.parametrize("chunk", [None, (1, 3000, 3000), (1, 16, 16), (64, 64, 64)])
def test_answers_have_a_handy_size(tmp_path, shape, chunk):
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 1), np.uint16))
    volume = ServedVolume(str(tmp_path / "a.npy"))
    shown = type("Shape", (), {"shape": shape, "chunk_vx": chunk})
    volume.levels = [[shown]]
    size = volume.chunk_vx(0)
    n = 2 * np.prod(size)
    assert all(1 <= s <= most for s, most in zip(size, shape, strict=True))
    assert n <= LARGEST_BYTES and (n >= SMALLEST_BYTES or size == shape)
    if chunk == (64, 64, 64) and shape == (300, 300, 300):
        assert size == chunk

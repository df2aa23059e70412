"""OME-Zarr over HTTP with ranges and over S3, on loopback."""

import pickle

import numpy as np
import pytest
import zarr
from em_data import Box, VolumeNotFoundError, VolumeReadError, open_volume


@pytest.fixture
def image(tmp_path, write_image, voxels):
    """A function that writes an image with a second level and a label, and gives its voxels."""

    def write(zarr_format, **array):
        data = voxels((12, 48, 64))
        write_image([data, data[::2, ::2, ::2]], zarr_format=zarr_format, **array)
        folder = tmp_path / "image.zarr" / "labels"
        group = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
        listed = {"labels": ["bright"]}
        group.attrs.update({"ome": listed} if zarr_format == 3 else listed)
        write_image(
            [(data > 9).astype(np.uint8)], "image.zarr/labels/bright", zarr_format=zarr_format
        )
        return data

    return write


KINDS = [
    (2, {"chunks": (4, 16, 16)}),
    (3, {"chunks": (4, 16, 16)}),
    (3, {"chunks": (4, 16, 16), "shards": (8, 32, 32)}),
]


def check_image(address, data):
    volume = open_volume(address)
    np.testing.assert_array_equal(volume[0:12, 0:48, 0:64], data)
    np.testing.assert_array_equal(volume[3:9, 5:33, 17:64], data[3:9, 5:33, 17:64])
    assert volume.voxel_size_nm == (40, 8, 8) and volume.chunk_vx == (4, 16, 16)
    assert [level.shape for level in volume.levels] == [(12, 48, 64), (6, 24, 32)]
    assert open_volume(address, at_nm=(80, 16, 16)).shape == (6, 24, 32)
    label = volume.labels("bright")
    np.testing.assert_array_equal(label[2:3, 0:48, 0:64], data[2:3] > 9)
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy[3:9, 5:33, 17:64], data[3:9, 5:33, 17:64])


@pytest.mark.parametrize(("zarr_format", "array"), KINDS)
def test_http(http_server, image, zarr_format, array):
    check_image(f"{http_server.url}/image.zarr", image(zarr_format, **array))


@pytest.mark.parametrize(("zarr_format", "array"), KINDS)
def test_s3(s3_bucket, tmp_path, image, zarr_format, array):
    data = image(zarr_format, **array)
    check_image(s3_bucket(tmp_path / "image.zarr"), data)


def test_s3_reads_credentials_from_the_environment_and_keeps_them_out_of_pickles(
    s3_bucket, tmp_path, image, monkeypatch
):
    data = image(3, chunks=(4, 16, 16))
    address = s3_bucket(tmp_path / "image.zarr", acl="private")
    with pytest.raises(VolumeReadError, match="AWS_ACCESS_KEY_ID"):
        open_volume(address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    volume = open_volume(address)
    pickled = pickle.dumps(volume)
    assert b"very-secret" not in pickled
    np.testing.assert_array_equal(pickle.loads(pickled)[0:4, 0:9, 0:9], data[0:4, 0:9, 0:9])


def test_absent_chunk_is_the_fill_value_and_a_cut_one_an_error(http_server, image, tmp_path):
    data = image(3, chunks=(4, 48, 64))
    volume = open_volume(f"{http_server.url}/image.zarr")
    (tmp_path / "image.zarr/s0/c/1/0/0").unlink()
    assert not volume[4:8, 0:48, 0:64].any()
    cut = tmp_path / "image.zarr/s0/c/2/0/0"
    cut.write_bytes(cut.read_bytes()[:50])
    with pytest.raises(VolumeReadError, match=r"\(1, 48, 64\) at \(9, 0, 0\).*/s0/c/2/0/0"):
        volume[9:10, 0:48, 0:64]
    np.testing.assert_array_equal(volume[0:4, 0:48, 0:64], data[:4])


def test_cut_shard_is_an_error(http_server, image, tmp_path):
    image(3, chunks=(4, 16, 16), shards=(12, 48, 64))
    volume = open_volume(f"{http_server.url}/image.zarr")
    shard = tmp_path / "image.zarr/s0/c/0/0/0"
    whole = shard.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:length])
        for box in (Box((0, 0, 0), (2, 3, 4)), Box((0, 0, 0), (12, 48, 64))):
            with pytest.raises(VolumeReadError, match="s0/c/0/0/0"):
                volume.read(box)


def test_servers_that_answer_otherwise(http_server, image, tmp_path, free_port):
    image(3, chunks=(4, 16, 16), shards=(8, 32, 32))
    with pytest.raises(VolumeNotFoundError, match=r"no volume at .*/nothing"):
        open_volume(f"{http_server.url}/nothing")
    with pytest.raises(VolumeReadError, match=r"forbidden.*refused by the server \(401 or 403\)"):
        open_volume(f"{http_server.url}/forbidden")
    with pytest.raises(VolumeReadError, match=rf"127.0.0.1:{free_port}.*cannot be fetched"):
        open_volume(f"http://127.0.0.1:{free_port}/image.zarr")
    http_server.ranges = False
    with pytest.raises(VolumeReadError, match=r"(?i)range"):
        open_volume(f"{http_server.url}/image.zarr")[0:1, 0:1, 0:1]


def test_server_that_refuses_while_reading(http_server, image):
    image(3, chunks=(4, 16, 16))
    volume = open_volume(f"{http_server.url}/image.zarr")
    http_server.refusing = True
    with pytest.raises(VolumeReadError, match="s0/c/0/0/0 is refused"):
        volume[0:1, 0:1, 0:1]


def test_server_that_refuses_what_is_absent(http_server, image, tmp_path):
    data = image(2, chunks=(4, 48, 64))
    http_server.absent = 403
    volume = open_volume(f"{http_server.url}/image.zarr")
    np.testing.assert_array_equal(volume[0:12, 0:48, 0:64], data)
    (tmp_path / "image.zarr/s0/1.0.0").unlink()
    with pytest.raises(VolumeReadError, match="1.0.0 is refused"):  # or is it the fill value?
        volume[4:8, 0:48, 0:64]


def test_bucket_that_is_not_there(s3_bucket, tmp_path):
    with pytest.raises(VolumeNotFoundError, match="s3://em-data/nothing"):
        open_volume("s3://em-data/nothing")
    with pytest.raises(VolumeNotFoundError, match="s3://no-such-bucket/a"):
        open_volume("s3://no-such-bucket/a")


def test_group_that_cannot_be_listed(http_server, tmp_path):
    zarr.open_group(tmp_path / "group.zarr", mode="w").create_array(
        "in", shape=(2, 2, 2), dtype="u1"
    )
    with pytest.raises(ValueError, match="without OME-NGFF 'multiscales'"):
        open_volume(f"{http_server.url}/group.zarr")
    assert open_volume(f"{http_server.url}/group.zarr/in").shape == (2, 2, 2)


def test_many_requests_are_in_flight(http_server, image):
    image(3, chunks=(2, 8, 8), compressors=None)
    volume = open_volume(f"{http_server.url}/image.zarr")
    http_server.requests.clear()
    volume[0:12, 0:48, 0:64]
    chunks = [path for path in http_server.requests if "/c/" in path]
    assert len(chunks) == len(set(chunks)) == 6 * 6 * 8
    assert http_server.most_at_once > 10  # what zarr-python keeps without being told


def test_metadata_that_is_no_json(http_server, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text("<html>")
    with pytest.raises(ValueError, match="zarr v3 metadata cannot be read"):
        open_volume(f"{http_server.url}/a.zarr")

"""Damaged metadata: one error that names the file, whatever stands there, in every format."""

import json
import os
import re

import h5py
import numpy as np
import pytest
import zarr
from em_data import (
    Box,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
    grey_range,
    open_volume,
    place_labels,
)
from em_data.formats.legend import read_legend


def _metadata(path):
    """The OME metadata of a zarr v3 group, and a function that writes them back."""
    file = path / "zarr.json"
    stored = json.loads(file.read_text())
    return stored["attributes"]["ome"], lambda: file.write_text(json.dumps(stored))


@pytest.mark.parametrize("value", [None, 3, "text", {}, [], [None], [3], ["text"], [{}], [[]]])
@pytest.mark.parametrize("key", ["multiscales", "datasets", "axes", "coordinateTransformations"])
def test_damaged_metadata_of_any_shape_name_their_file(tmp_path, voxels, write_image, key, value):
    path = write_image([voxels()])
    ome, write = _metadata(path)
    multiscale = ome["multiscales"][0]
    holder = {"multiscales": ome, "coordinateTransformations": multiscale["datasets"][0]}
    holder.get(key, multiscale)[key] = value
    write()
    if key == "coordinateTransformations" and value in ([], {}):
        assert open_volume(path).voxel_size_nm is None  # not stated
        return
    with pytest.raises(VolumeFormatError, match=re.escape(str(path))):
        open_volume(path)


@pytest.mark.parametrize(
    "labels", [{"labels": 3}, {"labels": "a"}, {"labels": [1, 2]}, {"labels": ["../../b"]}, 3, [3]]
)
def test_names_of_labels_are_names(tmp_path, voxels, write_image, labels):
    path = write_image([voxels()])
    group = zarr.open_group(path / "labels", mode="w", zarr_format=3)
    group.attrs["ome"] = labels
    with pytest.raises(VolumeFormatError, match=r"image\.zarr/labels: its list of labels"):
        open_volume(path)
    group.attrs["ome"] = {"labels": None}
    assert open_volume(path).label_names == ()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -4, "4", None, [4]])
def test_scales_are_finite_numbers_above_0(tmp_path, voxels, write_image, number):
    path = write_image([voxels()])
    ome, write = _metadata(path)
    (scale,) = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    scale["scale"][1] = number
    write()
    with pytest.raises(VolumeFormatError, match=r"image\.zarr"):
        open_volume(path)


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), "4", None])
def test_translations_are_finite_numbers(tmp_path, voxels, write_image, number):
    path = write_image([voxels()])
    ome, write = _metadata(path)
    steps = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    steps.append({"type": "translation", "translation": [0, number, 0]})
    write()
    with pytest.raises(VolumeFormatError, match=r"image\.zarr"):
        open_volume(path)
    with pytest.raises(VolumeFormatError, match="origin_nm: its origin is given as"):
        open_volume(voxels(), origin_nm=(0, number, 0))


@pytest.mark.parametrize("key", ["chunk_shape", "shape"])
def test_chunks_and_volumes_without_voxels_are_refused(tmp_path, voxels, write_image, key):
    path = write_image([voxels()])
    file = path / "s0" / "zarr.json"
    described = json.loads(file.read_text())
    holder = described["chunk_grid"]["configuration"] if key == "chunk_shape" else described
    for sides in ([0, 4, 4], [-1, 4, 4], [10**20, 4, 4], ["a", 4, 4], None):
        holder[key] = sides
        file.write_text(json.dumps(described))
        with pytest.raises(VolumeFormatError, match=r"image\.zarr"):
            open_volume(path)


def test_what_is_declared_is_not_allocated(tmp_path):
    """A file of a few bytes may say that it holds 10^18 voxels; more are refused."""
    zarr.create_array(tmp_path / "a.zarr", shape=(8, 8, 8), dtype="u1")
    described = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    described["shape"] = [10**6] * 3
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described))
    volume = open_volume(tmp_path / "a.zarr", voxel_size_nm=(8, 8, 8))
    grey_range(volume)
    labels = place_labels(volume, {"a": volume}).read(Box((10**5,) * 3, (2, 3, 4)))
    assert labels.shape == (1, 2, 3, 4)
    described["shape"] = [10**7] * 3
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(described))
    with pytest.raises(VolumeFormatError, match="no more voxels than a disk can hold"):
        open_volume(tmp_path / "a.zarr", voxel_size_nm=(8, 8, 8))


@pytest.mark.parametrize("value", [None, 3, "a", {}, [], [1], [[]], [None, 2, 3], ["x", "y", "z"]])
@pytest.mark.parametrize("key", ["scales", "resolution", "size", "voxel_offset", "key", "encoding"])
def test_damaged_precomputed_info(voxels, write_precomputed, key, value):
    path = write_precomputed(voxels(), "p")
    info = json.loads((path / "info").read_text())
    holder = info if key == "scales" else info["scales"][0]
    holder[key] = value
    (path / "info").write_text(json.dumps(info))
    if (key, value) == ("key", "a"):  # a name, of a folder that is not there: all is the fill value
        assert not open_volume(path)[0:1, 0:1, 0:1].any()
        return
    with pytest.raises((VolumeFormatError, VolumeReadError), match=re.escape(str(path))):
        open_volume(path)


def test_a_precomputed_key_stays_in_its_folder(voxels, write_precomputed):
    secret = write_precomputed(voxels(), "secret")
    path = write_precomputed(voxels(), "p")
    info = json.loads((path / "info").read_text())
    key = info["scales"][0]["key"]
    for other in (f"../secret/{key}", str(secret / key), f"{key}/../../secret/{key}", ".."):
        info["scales"][0]["key"] = other
        (path / "info").write_text(json.dumps(info))
        with pytest.raises(VolumeFormatError, match="outside of the volume's own folder"):
            open_volume(path)


@pytest.mark.parametrize("value", [None, 3, "a", {}, [], [1], [[]], [None, 2, 3]])
@pytest.mark.parametrize("key", ["dimensions", "axes", "transform", "compression"])
def test_damaged_n5_attributes(voxels, write_n5, key, value):
    path = write_n5(voxels(), "a.n5")
    file = path / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(VolumeFormatError, match=re.escape(str(path))):
        open_volume(path)


@pytest.mark.parametrize("offset", [[np.nan, 0, 0], [0, np.inf, 0]])
def test_damaged_attributes_of_hdf5(tmp_path, voxels, offset):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("raw", data=voxels())
        raw.attrs["resolution"] = [40.0, 4.0, 4.0]
        raw.attrs["offset"] = offset
    with pytest.raises(VolumeFormatError, match=r"a\.h5::raw: its origin"):
        open_volume(path)
    with h5py.File(path, "a") as file:
        file["raw"].attrs["axistags"] = "[1, 2"
    with pytest.raises(VolumeFormatError, match=r"a\.h5::raw: its attribute axistags"):
        open_volume(path)


def test_links_of_hdf5_that_lead_in_a_circle_or_nowhere(tmp_path, voxels):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = voxels()
        file["one"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/one")
        file["away"] = h5py.ExternalLink("nowhere.h5", "/raw")
        file["again"] = file["/"]
    assert open_volume(path).shape == voxels().shape
    for name in ("one", "other", "away"):
        with pytest.raises((VolumeNotFoundError, VolumeFormatError, VolumeReadError), match=name):
            open_volume(f"{path}::{name}")


HEADER = "{'descr': %s, 'fortran_order': False, 'shape': %s, }"


@pytest.mark.parametrize(
    "described",
    [
        HEADER % ("'|u1'", "(-2, 3, 4)"),
        HEADER % ("'|u1'", "(-2, -3, 4)"),
        HEADER % ("'|u1'", "(10**20, 10**20, 1)"),
        HEADER % ("'|u1'", "(100000000000000000000, 1, 1)"),
        HEADER % ("'|u1'", "(0, 3, 4)"),
        HEADER % ("'|O'", "(2, 3, 4)"),
        HEADER % ("'what'", "(2, 3, 4)"),
        "[1, 2",
    ],
)
def test_damaged_headers_of_npy(tmp_path, described):
    text = described.encode() + b"\n"
    start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
    (tmp_path / "a.npy").write_bytes(start + text + bytes(100))
    with pytest.raises(VolumeFormatError, match=r"a\.npy"):
        open_volume(tmp_path / "a.npy")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("shards", [None, (4, 16, 16)])
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(
    tmp_path, voxels, write_image, write_precomputed, shards
):
    path = write_image([voxels()], chunks=(2, 8, 8), shards=shards)
    _pipe(path / "s0" / "c" / "0" / "0" / "0")
    with pytest.raises(VolumeReadError, match="s0/c/0/0/0 is a pipe"):
        open_volume(path)[0:2, 0:8, 0:8]
    chunk = path / "s0" / "c" / "0" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to(chunk)
    with pytest.raises(VolumeReadError, match=r"s0/c/0/0/0 cannot be opened \(Too many levels"):
        open_volume(path)[0:2, 0:8, 0:8]
    _pipe(path / "s0" / "zarr.json")
    with pytest.raises(
        (VolumeFormatError, VolumeReadError), match=r"zarr\.json is a folder, a pipe"
    ):
        open_volume(path)
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(VolumeFormatError, match=r"a\.npy is a pipe or a device"):
        open_volume(tmp_path / "a.npy")
    (tmp_path / "slices").mkdir()
    os.mkfifo(tmp_path / "slices" / "0.png")
    with pytest.raises(VolumeFormatError, match=r"0\.png is a folder, a pipe or a device"):
        open_volume(tmp_path / "slices")
    path = write_precomputed(voxels(), "p")
    _pipe(path / "info")
    with pytest.raises((VolumeFormatError, VolumeReadError), match=r"p/info"):
        open_volume(path)


def test_no_message_is_a_bare_number_of_the_system(tmp_path):
    (tmp_path / "a").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for address in (tmp_path / "a" / "b", tmp_path / "loop", tmp_path / ("n" * 300), "a\0b"):
        with pytest.raises((VolumeNotFoundError, VolumeReadError, VolumeFormatError)) as caught:
            open_volume(address)
        assert "[Errno" not in str(caught.value) and "check" in str(caught.value)


def test_a_damaged_legend_names_its_file(voxels, write_image):
    path = write_image([voxels()], extra={"image-label": {"colors": 3}})
    with pytest.raises(VolumeFormatError, match=r"image\.zarr: what it says about its channels"):
        read_legend(str(path))

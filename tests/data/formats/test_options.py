"""Options of addresses: a voxel size where the file says none, one channel, and what is refused."""

import pickle

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from em_data import VolumeFormatError, VolumeNotFoundError, open_volume, place_labels
from em_data.formats.options import split_options
from PIL import Image

SIZE = "voxel_nm=50,4,4.5"


@pytest.fixture
def without_units(tmp_path, voxels):
    """Places of one volume in formats that say no voxel size here."""
    data = voxels((6, 20, 30))
    np.save(tmp_path / "a.npy", data)
    tifffile.imwrite(tmp_path / "a.tif", data)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["other"] = data, data
    zarr.create_array(tmp_path / "a.zarr", data=data)
    (tmp_path / "png").mkdir()
    for number, page in enumerate(data):
        Image.fromarray(page).save(tmp_path / "png" / f"{number}.png")
    return [str(tmp_path / n) for n in ("a.npy", "a.tif", "a.h5::raw", "a.zarr", "png")], data


def test_the_address_says_the_voxel_size(without_units):
    places, data = without_units
    for place in places:
        volume = open_volume(f"{place}?{SIZE}")
        assert volume.voxel_size_nm == (50, 4, 4.5), place
        np.testing.assert_array_equal(volume[:, :, :], data)
        again = open_volume(pickle.loads(pickle.dumps(volume)).source)  # as other processes do
        assert again.voxel_size_nm == (50, 4, 4.5), place
        labels = place_labels(volume, {"all": open_volume(f"{places[0]}?{SIZE}")})
        assert labels.covered[0].size_vx == data.shape
        assert open_volume(f"{place}?{SIZE}", voxel_size_nm=(1, 1, 1)).voxel_size_nm == (1, 1, 1)


def test_what_the_file_says_itself_is_not_contradicted(write_image, voxels):
    data = voxels((4, 16, 16))
    path = write_image([data, data[:, ::2, ::2]])
    for at_nm in (None, (80, 16, 16)):  # the size is that of the finest level
        volume = open_volume(f"{path}?voxel_nm=40,8,8", at_nm=at_nm)
        assert volume.voxel_size_nm == (at_nm or (40, 8, 8))
        with pytest.raises(VolumeFormatError, match="the file itself says voxel_nm=40,8,8; leave"):
            open_volume(f"{path}?voxel_nm=50,8,8", at_nm=at_nm)
    with pytest.raises(VolumeFormatError, match="says voxel_nm=17.6,8,8"):
        open_volume("synthetic:shape=4x64x64,voxel_nm=17.6x8x8?voxel_nm=20,8,8")


def test_labels_beside_a_volume_share_its_size(tmp_path, voxels):
    from em_data import Box, new_store

    data = voxels((4, 16, 16))
    with new_store(tmp_path / "a.zarr") as store:
        for label in (None, "cells"):
            image = store.add_image(data.shape, np.uint8, None, label=label)
            image.write(Box((0, 0, 0), data.shape), data)
    volume = open_volume(f"{tmp_path / 'a.zarr'}?{SIZE}")
    assert volume.labels("cells").voxel_size_nm == (50, 4, 4.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "voxel=50,4,4",
            r"'voxel=50,4,4' is no option.*known after '\?' are voxel_nm=50,4,4, chan",
        ),
        ("voxel_nm=50,4", "voxel_nm is '50,4'; wanted three sizes in nm above 0"),
        ("voxel_nm=50,4,0", "wanted three sizes"),
        ("voxel_nm=nan,4,4", "wanted three sizes"),
        ("voxel_nm=a,b,c", "wanted three sizes"),
        ("voxel_nm=", "'voxel_nm=' is no option"),
        ("voxel_nm=5,5,5&voxel_nm=5,5,5", "given twice"),
        ("channel=1", "no channel axis, but channel='1' was asked for"),
        ("match={name}.png", "match is an option of images, and this is npy; leave it out"),
    ],
)
def test_bad_options(without_units, options, message):
    (place, *_), _ = without_units
    with pytest.raises(VolumeFormatError, match=message):
        open_volume(f"{place}?{options}")


def test_one_channel_is_named_once(write_image, voxels):
    data = voxels((2, 4, 16, 16))
    omero = {"omero": {"channels": [{"label": "raw"}, {"label": "mito"}]}}
    path = write_image([data], axes="czyx", extra=omero)
    for choice in ("mito", "1"):
        volume = open_volume(f"{path}?channel={choice}")
        assert volume.channels == ("mito",)
        np.testing.assert_array_equal(volume[:, :, :], data[1])
        assert open_volume(volume.source, channel=choice).channels == ("mito",)
    with pytest.raises(VolumeFormatError, match="channel='raw' is asked for; give one"):
        open_volume(f"{path}?channel=mito", channel="raw")
    with pytest.raises(VolumeFormatError, match="no channel 'axon'; it has 2 channels: raw, mito"):
        open_volume(f"{path}?channel=axon")


def test_paths_with_a_question_mark_are_paths(tmp_path, voxels, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = voxels((2, 4, 4))
    for name in ("what?.npy", "a=1?b=2.npy"):
        np.save(tmp_path / name, data)
        assert open_volume(name).voxel_size_nm is None
        assert open_volume(f"{name}?{SIZE}").voxel_size_nm == (50, 4, 4.5)
    with h5py.File("why?x=1.h5", "w") as file:
        file["raw"] = data
    assert open_volume("why?x=1.h5::raw").shape == data.shape
    assert split_options(f"why?x=1.h5::raw?{SIZE}") == (
        "why?x=1.h5::raw",
        {"voxel_nm": "50,4,4.5"},
    )
    with pytest.raises(VolumeNotFoundError, match=r"no volume at who\?\.npy"):
        open_volume("who?.npy")

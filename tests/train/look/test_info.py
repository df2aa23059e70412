"""`emtrain info VOLUME`: figures and a picture, from volumes that other libraries wrote."""

import json

import h5py
import numpy as np
import pytest
import zarr
from em_data import Box, VolumeFormatError, new_store
from em_train.look.info import describe
from PIL import Image

# A row of save_row is titled above its panels, which stand apart.
TITLE, GAP = 26, 12


@pytest.fixture
def gradient():
    """Brighter along z and x, so that a picture can be told from its mirror image."""
    z, _, x = np.mgrid[:20, :100, :300]
    return (40 + 5 * z + x // 4).astype(np.uint8)


def write_image(path, levels, size_nm):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    datasets = []
    for number, data in enumerate(levels):
        group.create_array(f"s{number}", data=data, chunks=(4, 32, 32), shards=(8, 64, 64))
        scale = [size_nm[0], *(s * 2**number for s in size_nm[1:])]
        steps = [{"type": "scale", "scale": scale}]
        datasets.append({"path": f"s{number}", "coordinateTransformations": steps})
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


def test_figures_of_an_image_and_json(tmp_path, gradient):
    write_image(tmp_path / "a.zarr", [gradient, gradient[:, ::2, ::2]], (40, 8, 8))
    found = describe(str(tmp_path / "a.zarr"))
    assert found["format"] == "OME-Zarr 0.5"
    assert (found["chunks"], found["shards"]) == ("4 × 32 × 32", "8 × 64 × 64")
    assert found["compression"] == "zstd"
    assert found["levels"][1] == "s1: 20 × 50 × 150, 40 × 16 × 16 nm"
    assert found["values in the middle"].startswith("85 to 159")
    json.dumps(found)


def test_the_mean_of_the_largest_floats_is_finite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 8, 8), np.finfo(np.float64).max))
    assert "mean 1797693134862315" in describe(str(tmp_path / "a.npy"))["values in the middle"]


def test_figures_of_hdf5(tmp_path, gradient):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("raw", data=gradient, chunks=(4, 50, 50), compression="gzip")
    found = describe(f"{tmp_path}/a.h5::raw")
    assert (found["format"], found["compression"]) == ("HDF5", "deflate")
    assert found["voxel size (nm)"].startswith("unknown")


def test_thumbnail_shows_both_sides_stretched_by_anisotropy(tmp_path, gradient):
    write_image(tmp_path / "a.zarr", [gradient], (40, 8, 8))
    said = describe(str(tmp_path / "a.zarr"), tmp_path / "a.png")["thumbnail"]
    assert "xy at z 9 and xz at y 49, at 40 × 8 × 8 nm" in said
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(int)
    assert picture.shape == (TITLE + 100, 300 + GAP + 300)
    xy, xz = picture[TITLE:, :300], picture[TITLE:, 300 + GAP :]
    assert (np.diff(xy, axis=1) >= 0).all() and (np.diff(xz, axis=1) >= 0).all()
    assert (np.diff(xz, axis=0) >= 0).all() and np.ptp(xz[:, 100]) > 50
    assert (xz[0:5] == xz[0]).all() and (xz[5] > xz[0])[100]  # one slice is 40 / 8 rows
    assert xz.min() == 0 and xz.max() == 255


def test_thumbnail_of_a_large_volume_is_small_and_shows_a_coarse_level(tmp_path):
    fine = np.zeros((2, 1200, 1300), np.uint8)
    fine[:, :, 650:] = 200
    write_image(tmp_path / "a.zarr", [fine, fine[:, ::2, ::2], fine[:, ::4, ::4]], (8, 8, 8))
    said = describe(str(tmp_path / "a.zarr"), tmp_path / "a.png")["thumbnail"]
    assert "at 8 × 16 × 16 nm" in said
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (512 + GAP + 512, TITLE + 512)


def test_a_thumbnail_needs_a_volume(tmp_path):
    with pytest.raises(VolumeFormatError, match="thumbnail is that of a volume"):
        describe(None, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_a_collection_of_images_is_described(tmp_path):
    for number, size in enumerate(((40, 30), (90, 64), (50, 70))):
        Image.new("RGB" if number else "L", size).save(tmp_path / f"{number}.png")
    found = describe(f"images:{tmp_path}?voxel_nm=1,2,2&least_px=35")
    assert found["number"] == "2" and found["voxel size (nm)"] == "1 × 2 × 2"
    assert (found["smallest (y, x)"], found["largest (y, x)"]) == ("70 × 50", "64 × 90")
    assert found["notes"] == [
        "1 are smaller than 35 px along a side and are left out",
        "2 are in colour and are taken as their luminance",
    ]
    with pytest.raises(VolumeFormatError, match="channel is that of a volume"):
        describe(f"images:{tmp_path}", channel=1)


def test_a_channel_is_chosen_by_number_or_name(tmp_path, gradient):
    with new_store(tmp_path / "a.zarr") as store:
        image = store.add_image(gradient.shape, np.uint8, (40, 8, 8), channels=("raw", "inverse"))
        image.write(Box((0, 0, 0), gradient.shape), np.stack([gradient, 255 - gradient]))
    both = describe(str(tmp_path / "a.zarr"))
    assert both["channels"] == "2: raw, inverse"
    assert both["values in the middle"].startswith("85 to 170")
    with pytest.raises(VolumeFormatError, match=r"2 channels \(raw, inverse\); choose one"):
        describe(str(tmp_path / "a.zarr"), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
    assert describe(f"{tmp_path / 'a.zarr'}?channel=inverse")["channel"] == "inverse"
    found = describe(str(tmp_path / "a.zarr"), tmp_path / "a.png", channel="inverse")
    assert found["channel"] == "inverse" and found["values in the middle"].startswith("96 to 170")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(int)
    assert (np.diff(picture[TITLE:, :300], axis=1) <= 0).all()  # it shows that channel
    assert describe(str(tmp_path / "a.zarr"), channel=0)["values in the middle"].startswith("85")
    with pytest.raises(VolumeFormatError, match="channel is that of a volume"):
        describe(None, channel=1)

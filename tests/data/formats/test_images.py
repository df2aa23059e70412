"""A collection of images: listed once, each a volume of its own; what is left out is said."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from em_data import (
    Box,
    Images,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
    grey_range,
    open_images,
    open_volume,
)
from PIL import Image

SIZES = ((20, 31), (40, 40), (25, 64))


@pytest.fixture
def folder(tmp_path, voxels):
    """A folder of a PNG, a JPEG and a TIFF of different sizes, and what is no image."""
    path = tmp_path / "images"
    path.mkdir()
    Image.fromarray(voxels(SIZES[0])).save(path / "a.png")
    Image.fromarray(voxels(SIZES[1], seed=1)).save(path / "b.JPG", format="jpeg")
    tifffile.imwrite(path / "c.tif", voxels(SIZES[2], seed=2), compression="zlib")
    (path / "notes.txt").write_text("none of them")
    (path / ".hidden.png").write_bytes(b"")
    return path


def test_every_image_is_a_volume_of_one_slice(folder, voxels):
    images = open_images(f"images:{folder}?voxel_nm=1,2,2")
    assert isinstance(images, Images) and len(images) == 3 and images.notes == ()
    assert images.shapes.tolist() == [[1, *size] for size in SIZES]
    assert images.nbytes == sum(y * x for y, x in SIZES)
    for number, volume in enumerate(pickle.loads(pickle.dumps(images))):
        assert volume.shape == volume.chunk_vx == (1, *SIZES[number])
        assert volume.voxel_size_nm == (1, 2, 2) and volume.dtype == np.uint8
        whole = volume[:, :, :]
        np.testing.assert_array_equal(
            volume.read(Box((0, 3, 5), (1, 9, 20)))[0], whole[0, 3:12, 5:25]
        )
    np.testing.assert_array_equal(images[0][:, :, :][0], voxels(SIZES[0]))
    np.testing.assert_array_equal(images[2][:, :, :][0], voxels(SIZES[2], seed=2))
    assert [Path(v.source).name for v in images[1:]] == ["b.JPG", "c.tif"]
    assert images.take(np.array([2, 0])).path(0).endswith("c.tif")
    low, high = np.percentile(voxels(SIZES[0]), [0.5, 99.5])
    assert (grey_range(images[0]).low, grey_range(images[0]).high) == pytest.approx((low, high))


def test_what_is_done_to_some_of_them_is_said(folder, voxels):
    Image.fromarray(voxels((30, 30, 3))).save(folder / "d.png")
    Image.fromarray(voxels((50, 30), np.uint16)).save(folder / "e.png")
    images = open_images(f"images:{folder}?least_px=22")
    assert images.dtype == np.uint16 and len(images) == 4
    assert images.notes == (
        "1 are smaller than 22 px along a side and are left out",
        "1 are in colour and are taken as their luminance",
        "they hold uint16 and uint8, and each keeps the values that it has",
    )
    assert str(images).startswith(f"{folder}: 4 images, 25 × 30 to 50 × 64 uint16; 1 are smaller")
    np.testing.assert_array_equal(images[3][:, :, :][0], voxels((50, 30), np.uint16))


def test_unreadable_images_are_named_and_skipped_where_the_user_says_so(folder):
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "worse.tif").write_bytes(b"II*\0")
    with pytest.raises(VolumeFormatError, match=r"2 of 5 images.*bad\.png \(it is no PNG.*=skip"):
        open_images(f"images:{folder}")
    images = open_images(f"images:{folder}?unreadable=skip")
    assert len(images) == 3 and "2 cannot be read and are left out: bad.png (" in images.notes[0]
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeReadError, match=r"a\.png.*cannot be read"):
        images[0].read(Box((0, 0, 0), (1, 4, 4)))
    Image.new("L", (9, 9)).save(folder / "a.png")
    with pytest.raises(VolumeReadError, match=r"shape is \(9, 9\), no longer \(20, 31\)"):
        images[0].read(Box((0, 0, 0), (1, 4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?unreadable=leave", "unreadable is 'leave'; wanted skip"),
        ("?least_px=big", "least_px is 'big'; wanted a number"),
        ("?least_px=²", "least_px is '²'; wanted a number"),
        ("?least_px=99", "all of 3 images are smaller; lower least_px"),
        ("?take=2", "take is '2'; wanted a range A:B"),
        ("?take=1:9", "take is 1:9, and there are 3 images; end at 3"),
        ("?match={name}.png", "match says where the labels of images are"),
        ("?channel=1", "read as grey; leave channel out"),
        ("?voxel=1,1,1", "is no option of an address"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(VolumeFormatError, match=message):
        open_images(f"images:{folder}{options}")


def test_some_of_them_are_taken_in_the_order_of_names(folder):
    images = open_images(f"images:{folder}?least_px=22&take=1:2&voxel_nm=1,2,2")
    assert [images.name(n) for n in range(len(images))] == ["c"]
    assert images.voxel_size_nm == (1, 2, 2)


def test_held_in_memory_they_are_read_once(folder):
    images = open_images(f"images:{folder}?unreadable=skip").treating("mask")
    (folder / "b.JPG").write_bytes((folder / "b.JPG").read_bytes()[:300])
    wanted = images[2][:, :, :]
    held = images.held_in_memory()
    (folder / "c.tif").unlink()
    assert held[2].nan == "mask" and held[2].source.endswith("c.tif")
    np.testing.assert_array_equal(held[2][:, :, :], wanted)
    np.testing.assert_array_equal(held.take(np.array([2, 0]))[0][:, :, :], wanted)
    with pytest.raises(VolumeReadError, match=r"b\.JPG.*cannot be read"):  # as before
        held[1].read(Box((0, 0, 0), (1, 4, 4)))
    with pytest.raises(VolumeReadError, match=r"c\.tif.*cannot be read"):
        images.take(np.array([2]))[0].read(Box((0, 0, 0), (1, 4, 4)))


def test_bad_folders(folder, tmp_path):
    with pytest.raises(VolumeNotFoundError, match="no folder of images at"):
        open_images(f"images:{tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeFormatError, match="no images in it; wanted PNG, TIFF or JPEG"):
        open_images(f"images:{tmp_path}/empty")
    with pytest.raises(VolumeFormatError, match="wanted images:FOLDER"):
        open_images(str(folder))
    with pytest.raises(VolumeFormatError, match=r"collection of images.*em_data\.open_images"):
        open_volume(f"images:{folder}")


def test_what_is_kept_is_a_few_numbers_for_each(tmp_path):
    """Half a million would take less than 40 MB."""
    Image.new("L", (8, 8)).save(tmp_path / "0000000.png")
    content = (tmp_path / "0000000.png").read_bytes()
    for number in range(1, 2000):
        (tmp_path / f"{number:07}.png").write_bytes(content)
    images = open_images(f"images:{tmp_path}")
    assert len(images) == 2000 and len(pickle.dumps(images)) < 2000 * 80
    assert len(pickle.dumps(images[:2])) < 1000


def test_real_collection(emps):
    images = open_images(f"images:{emps / 'images'}")
    assert len(images) == 160 and images.shapes[:, 1:].max() == 320 and images.dtype == np.uint8
    assert images[159][:, :, :].std() > 5

"""Labels of images: matched by name, with a pattern or without, and refused where one is missing."""

import numpy as np
import pytest
import tifffile
from em_data import Box, VolumeFormatError, match_labels, open_images
from PIL import Image

SIZES = ((20, 31), (40, 40), (25, 64))
NAMES = ("a", "b.2", "c")


@pytest.fixture
def folders(tmp_path, voxels):
    """Images and two folders of labels, whose files are called in two ways."""
    for name in ("images", "masks", "cells"):
        (tmp_path / name).mkdir()
    for number, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        Image.fromarray(voxels(size, seed=number)).save(tmp_path / "images" / f"{name}.png")
        mask = voxels(size, seed=9 + number) > 100
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}_mask.png")
        tifffile.imwrite(tmp_path / "cells" / f"{name}.tif", mask * np.uint16(300 + number))
    (tmp_path / "masks" / "other.png").write_bytes(b"of no image")
    return tmp_path


def test_labels_are_matched_by_name(folders, voxels):
    images = open_images(f"images:{folders}/images")
    labels = match_labels(
        images,
        {
            "mask": f"images:{folders}/masks?match={{name}}_mask.png",
            "cells": f"images:{folders}/cells",
        },
    )
    assert len(labels) == 3 and labels.names == ("mask", "cells") and labels.dtype == np.uint16
    for number, own in enumerate(labels):
        mask = voxels(SIZES[number], seed=9 + number) > 100
        found = own.read(Box((0, 2, 3), (1, 15, 20)))[:, 0]
        np.testing.assert_array_equal(found, np.stack([mask, mask * (300 + number)])[:, 2:17, 3:23])
        assert own.valid(Box((0, 0, 0), images[number].shape)).all()
    last = match_labels(images[2:], {"cells": f"images:{folders}/cells"})
    assert last[0].read(Box((0, 0, 0), (1, 25, 64))).max() == 302
    assert labels[1:][1].names == labels.names and len(labels.take(np.array([2]))) == 1


def test_what_does_not_match_is_named(folders):
    images = open_images(f"images:{folders}/images")

    def refused(address, message):
        with pytest.raises(VolumeFormatError, match=message):
            match_labels(images, {"mito": address})

    masks, cells = f"images:{folders}/masks", f"images:{folders}/cells"
    refused(masks, r"has none for 3 of 3 images \(a\.png, b\.2\.png, c\.png\); wanted 'a' for the")
    refused(f"{masks}?match={{name}}.png", r"wanted 'a\.png' for the first.*\?match=")
    refused(f"{masks}?match=mask.png", "wanted a pattern with {name}")
    refused(f"{masks}?unreadable=skip", "unreadable is an option of the images; leave it out")
    Image.new("L", (31, 20)).save(folders / "cells" / "a.png")
    refused(cells, r"a\.png, a\.tif are labels of one image; say which with \?match=")
    refused(f"{cells}?match={{name}}.png", r"none for 2 of 3 images \(b\.2\.png, c\.png\)")
    (folders / "cells" / "a.png").unlink()
    tifffile.imwrite(folders / "cells" / "a.tif", np.zeros((9, 9), np.uint16))
    refused(
        cells, r"labels 'mito' of .*a\.png are 9 × 9 pixels, and the image is 20 × 31 \(1 differ"
    )
    tifffile.imwrite(folders / "cells" / "a.tif", np.zeros((20, 31), np.float32))
    refused(cells, r"1 of 3 images cannot be read: a\.tif \(labels are whole numbers.*repair them")
    with pytest.raises(VolumeFormatError, match="no labels; name at least one folder"):
        match_labels(images, {})


def test_real_collection(emps):
    images = open_images(f"images:{emps / 'images'}")
    labels = match_labels(images, {"particles": f"images:{emps / 'instances'}"})
    values = labels[0].read(Box((0, 0, 0), images[0].shape))
    assert len(labels) == 160 and 0 < np.mean(values > 0) < 1 and values.max() > 1

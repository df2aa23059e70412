"""One picture: its header is right, colours become grey, labels keep their numbers."""

import numpy as np
import pytest
import tifffile
from em_data.formats.pictures import decoded, read_header
from PIL import Image

SHAPE = (14, 23)


@pytest.fixture
def grey(voxels):
    return voxels(SHAPE)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *(("png", dtype) for dtype in (bool, np.uint8, np.uint16)),
        *(("tif", dtype) for dtype in (bool, np.uint8, np.uint16, np.int16, np.uint32, np.float32)),
    ],
)
def test_grey_is_read_as_it_is(tmp_path, voxels, suffix, dtype):
    path = tmp_path / f"a.{suffix}"
    data = voxels(SHAPE, np.uint8) > 100 if dtype is bool else voxels(SHAPE, dtype)
    if suffix == "png":
        Image.fromarray(data).save(path)
    else:
        tifffile.imwrite(path, data, compression="zlib")
    stored = np.dtype(np.uint8 if dtype is bool else dtype)
    assert read_header(path, False) == (*SHAPE, stored.name, False)
    for is_label in (False, True):
        found = decoded(path, is_label)
        assert found.dtype == stored
        np.testing.assert_array_equal(found, data)


def test_colours_become_their_luminance(tmp_path, voxels):
    colours = voxels((*SHAPE, 3))
    picture = Image.fromarray(colours)
    for mode in ("RGB", "RGBA", "P"):
        picture.convert(mode).save(tmp_path / f"{mode}.png")
    tifffile.imwrite(tmp_path / "RGB.tif", colours, photometric="rgb")
    picture.save(tmp_path / "RGB.jpg", quality=100, subsampling=0)
    want = np.asarray(colours, float) @ (0.299, 0.587, 0.114)
    for name, off in (("RGB.png", 1), ("RGBA.png", 1), ("RGB.tif", 0.51), ("RGB.jpg", 9)):
        path = tmp_path / name
        assert read_header(path, False) == (*SHAPE, "uint8", True), name
        assert np.abs(decoded(path, False) - want).max() <= off, name
        with pytest.raises(ValueError, match=r"labels are whole numbers .* it is (RGB|JPEG)"):
            read_header(path, True)
    assert read_header(tmp_path / "P.png", False).is_colour
    palette = np.asarray(picture.convert("P").convert("L"), float)
    assert np.abs(decoded(tmp_path / "P.png", False) - palette).max() <= 1


def test_numbers_of_a_palette_are_labels(tmp_path):
    numbers = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 5
    picture = Image.fromarray(numbers, "L")
    picture.putpalette([200, 10, 30] * 256)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    assert read_header(tmp_path / "a.png", True) == (*SHAPE, "uint8", False)
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", True), numbers)
    assert decoded(tmp_path / "a.png", False).dtype == np.uint8  # its colours, without a warning


def test_what_is_no_picture_is_refused(tmp_path, grey, voxels):
    (tmp_path / "a.png").write_bytes(b"not a png at all, though it is called so")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    tifffile.imwrite(tmp_path / "stack.tif", voxels((3, *SHAPE)), photometric="minisblack")
    tifffile.imwrite(tmp_path / "wide.tif", grey.astype(np.float64))
    Image.fromarray(grey).quantize(3).convert("L").save(tmp_path / "fine.png", bits=8)
    for name in ("a.png", "a.jpg", "a.tif", "stack.tif", "wide.tif"):
        with pytest.raises((ValueError, OSError, SyntaxError)):
            read_header(tmp_path / name, False)
    assert read_header(tmp_path / "fine.png", True).dtype == "uint8"

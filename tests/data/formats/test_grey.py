"""Pictures that store no grey values: what is read is what a person sees, or the number that is meant."""

import numpy as np
import pytest
import tifffile
from em_data import VolumeFormatError, open_volume
from PIL import Image

DESCENDING = np.arange(255, -1, -1, dtype=np.uint8)


def read(path):
    return open_volume(path)[:, :, :]


@pytest.fixture
def grey(voxels):
    return voxels((3, 20, 30))


@pytest.mark.parametrize("step", [1, 17])
def test_a_png_with_a_palette_of_greys_has_their_values(tmp_path, grey, step):
    """Every slice has a palette of its own, and all of them turn the greys around."""
    for number, page in enumerate(grey):
        palette = np.roll(DESCENDING, step * number)
        index = np.argsort(palette).astype(np.uint8)[page]
        picture = Image.fromarray(index, "L").copy()
        picture.putpalette(np.repeat(palette, 3).tobytes())
        picture.save(tmp_path / f"{number}.png")
        np.testing.assert_array_equal(np.asarray(picture.convert("L")), page)
    np.testing.assert_array_equal(read(tmp_path), grey)
    np.testing.assert_array_equal(open_volume(tmp_path)[1:2, 3:9, 4:7], grey[1:2, 3:9, 4:7])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("folder", [True, False])
def test_a_tiff_with_a_palette_of_greys_has_their_values(tmp_path, grey, compression, folder):
    colormap = np.repeat((DESCENDING.astype(np.uint16) * 257)[None], 3, 0)
    options = {"photometric": "palette", "colormap": colormap, "compression": compression}
    if folder:
        for number, page in enumerate(grey):
            tifffile.imwrite(tmp_path / f"{number}.tif", 255 - page, **options)
    else:
        tifffile.imwrite(tmp_path / "a.tif", 255 - grey, **options)
    path = tmp_path if folder else tmp_path / "a.tif"
    volume = open_volume(path)
    np.testing.assert_array_equal(volume[:, :, :], grey)
    assert (volume.dtype, volume.shape) == (np.uint8, grey.shape)
    np.testing.assert_array_equal(volume[1:3, 5:9, 2:30], grey[1:3, 5:9, 2:30])


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_palette_of_colours_tells_numbers_apart(tmp_path, kind):
    labels = np.random.default_rng(0).integers(0, 5, (20, 30)).astype(np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    if kind == "png":
        picture = Image.fromarray(labels, "L").copy()
        picture.putpalette(colours.tobytes())
        picture.save(tmp_path / "0.png")
    else:
        colormap = colours.T.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / "0.tif", labels, photometric="palette", colormap=colormap)
    np.testing.assert_array_equal(read(tmp_path)[0], labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_where_0_is_white_black_is_0(tmp_path, grey, dtype, compression):
    grey = grey.astype(dtype) * (257 if dtype == np.uint16 else 1)
    stored = ~grey
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(read(path), grey)
    tifffile.imwrite(path, stored.astype(np.float32), photometric="miniswhite")
    with pytest.raises(VolumeFormatError, match=r"a\.tif says that 0 is white and holds float32"):
        open_volume(path)


def test_masks_of_bits_are_kept_as_they_are(tmp_path, grey):
    mask = grey > 9
    tifffile.imwrite(tmp_path / "a.tif", mask)  # which says that 0 is white
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), mask)

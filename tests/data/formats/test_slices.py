import math
import re

import numpy as np
import pytest
import tifffile
from em_data import Box, VolumeFormatError, VolumeReadError, open_volume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

NM = {"axes": "ZYX", "spacing": 0.04, "unit": "um"}
LAYOUTS = [
    {},  # in one piece: mapped
    {"byteorder": ">"},
    {"compression": "zlib"},
    {"compression": "lzw", "predictor": True, "byteorder": ">"},
    {"compression": "zstd", "rowsperstrip": 5},
    {"tile": (16, 32)},
    {"tile": (16, 16), "compression": "zlib", "bigtiff": True},
]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layout=st.sampled_from(LAYOUTS),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    dtype=st.sampled_from(["u1", "u2", "f4"]),
    data=st.data(),
)
def test_any_box_of_any_layout(tmp_path, layout, shape, dtype, data):
    voxels = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    options = dict(layout)
    byteorder, big = options.pop("byteorder", "<"), options.pop("bigtiff", False)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=big) as tiff:
        for page in voxels:  # pages that know nothing of each other
            tiff.write(page, photometric="minisblack", metadata=None, contiguous=False, **options)
    volume = open_volume(path)
    assert (volume.shape, volume.dtype) == (shape, np.dtype(dtype))
    origin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    size = tuple(data.draw(st.integers(1, n - o)) for n, o in zip(shape, origin, strict=True))
    box = Box(origin, size)
    np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
    np.testing.assert_array_equal(
        volume.read(box), tifffile.imread(path).reshape(shape)[box.slices]
    )


def test_jpeg_with_tables_of_the_page(tmp_path, voxels):
    path = tmp_path / "a.tif"
    smooth = np.linspace(0, 200, 40 * 50).reshape(40, 50).astype(np.uint8)
    pages = [Image.fromarray(page) for page in (smooth, 255 - smooth)]
    pages[0].save(path, compression="jpeg", save_all=True, append_images=pages[1:])
    with tifffile.TiffFile(path) as file:
        assert all(page.jpegtables for page in file.pages)
    np.testing.assert_array_equal(
        open_volume(path)[:, 3:40, 7:50], tifffile.imread(path)[:, 3:, 7:]
    )


def test_voxel_sizes_of_imagej_and_ome(tmp_path, voxels):
    data = voxels((6, 16, 16))
    path = tmp_path / "imagej.tif"
    tifffile.imwrite(path, data, imagej=True, resolution=(1 / 0.004, 1 / 0.005), metadata=NM)
    assert open_volume(path).voxel_size_nm == pytest.approx((40, 5, 4))
    damaged = NM | {"spacing": math.nan}
    tifffile.imwrite(path, data, imagej=True, resolution=(250, 250), metadata=damaged)
    with pytest.raises(
        VolumeFormatError, match=rf"^{re.escape(str(path))}: the voxel size is given as"
    ):
        open_volume(path)
    pixels = NM | {"unit": "pixel"}
    tifffile.imwrite(path, data, imagej=True, resolution=(250, 250), metadata=pixels)
    assert open_volume(path).voxel_size_nm is None
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": "ZYX"})
    assert open_volume(path).voxel_size_nm is None
    tifffile.imwrite(path, data, resolution=(72, 72), resolutionunit="INCH")  # for printing
    assert open_volume(path).voxel_size_nm is None
    sizes = {"PhysicalSizeX": 4, "PhysicalSizeY": 5, "PhysicalSizeZ": 0.04}
    units = {"PhysicalSizeXUnit": "nm", "PhysicalSizeYUnit": "nm"}  # z: µm by default
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, data, metadata={"axes": "ZYX", **sizes, **units})
    assert open_volume(path).voxel_size_nm == (40, 5, 4)
    units["PhysicalSizeXUnit"] = "pixel"
    tifffile.imwrite(path, data, metadata={"axes": "ZYX", **sizes, **units})
    assert open_volume(path).voxel_size_nm is None


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_channels_and_times(tmp_path, voxels, compression):
    data = voxels((2, 5, 3, 16, 20), np.uint16)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, data, metadata={"axes": "TZCYX"}, compression=compression)
    with pytest.raises(VolumeFormatError, match="2 time points; choose one with time=0 … 1"):
        open_volume(path, channel=0)
    volume = open_volume(path, channel=2, time=1)
    np.testing.assert_array_equal(volume[1:4, 3:9, 0:20], data[1, 1:4, 2, 3:9])
    frames = tmp_path / "frames.ome.tif"
    tifffile.imwrite(frames, data[0, :, 0], metadata={"axes": "TYX"})
    with pytest.raises(VolumeFormatError, match=r"axes are \['t', 'y', 'x'\]"):
        open_volume(frames)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_are_channels(tmp_path, voxels, planar, compression):
    data = voxels((4, 16, 20, 3))
    stored = data if planar == "contig" else data.transpose(0, 3, 1, 2)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        stored,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        rowsperstrip=6,
    )
    np.testing.assert_array_equal(
        open_volume(path).read_channels(Box((1, 3, 2), (3, 12, 18))),
        data[1:4, 3:15, 2:20].transpose(3, 0, 1, 2),
    )
    np.testing.assert_array_equal(
        open_volume(path, channel=1)[1:4, 3:15, 2:20], data[1:4, 3:15, 2:20, 1]
    )


def test_pages_of_two_shapes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for side in (8, 8, 9, 8):
            tiff.write(np.zeros((side, 8), np.uint8), metadata=None, contiguous=False)
    with pytest.raises(VolumeFormatError, match=r"holds \d images, of shapes"):
        open_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "rowsperstrip": 8}])
def test_truncated_tiff_is_an_error(tmp_path, voxels, layout):
    path, data = tmp_path / "a.tif", voxels((4, 32, 32))
    tifffile.imwrite(path, data, photometric="minisblack", **layout)
    whole = path.read_bytes()
    volume = open_volume(path)
    path.write_bytes(whole[: -100 if layout else -2000])
    if layout:
        np.testing.assert_array_equal(volume[0:1, 0:32, 0:32], data[:1])
        with pytest.raises(VolumeReadError, match=r"a\.tif: page 3 is truncated"):
            volume[3:4, 0:32, 0:32]
        path.write_bytes(whole[:-200] + bytes(200))
        with pytest.raises(VolumeReadError, match="of page 3 cannot be decoded"):
            volume[3:4, 0:32, 0:32]
    else:
        with pytest.raises(VolumeFormatError, match=r"a\.tif cannot be read as TIFF"):
            open_volume(path)
    path.write_bytes(whole[:12])
    with pytest.raises(VolumeFormatError, match=r"a\.tif cannot be read as TIFF"):
        open_volume(path)


@pytest.mark.parametrize("byteorder", "<>")
def test_a_file_that_ends_early_has_no_fewer_slices(tmp_path, voxels, byteorder):
    """tifffile itself leaves out what is lost."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=byteorder) as tiff:
        for page in voxels((6, 40, 50)):
            tiff.write(page, compression="zlib", contiguous=False, metadata=None)
    whole = path.read_bytes()
    assert open_volume(path).shape == (6, 40, 50)
    for length in (len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(VolumeFormatError, match=r"page \d should begin at byte"):
            open_volume(path)


@pytest.fixture(params=["png", "tif"])
def folder(request, tmp_path):
    """A function that writes slices 0 … n − 1 into a folder, by names without leading zeros."""

    def write(data):
        (tmp_path / "slices").mkdir()
        for number, page in enumerate(data):
            path = tmp_path / "slices" / f"section_{number}.{request.param}"
            if request.param == "png":
                Image.fromarray(page).save(path)
            else:
                tifffile.imwrite(path, page, compression="lzw", rowsperstrip=7)
        return tmp_path / "slices", request.param

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_folders_are_in_natural_order(folder, voxels, dtype):
    data = voxels((12, 20, 30), dtype)
    path, kind = folder(data)
    (path / "notes.txt").write_text("taken on a Monday")
    (path / f"._section_1.{kind}").write_text("what some file managers leave behind")
    volume = open_volume(path)
    assert (volume.shape, volume.dtype) == (data.shape, dtype)
    np.testing.assert_array_equal(volume[8:12, 3:17, 5:30], data[8:12, 3:17, 5:30])


def test_the_odd_slice_is_named(folder, voxels):
    data = voxels((12, 20, 30))
    path, kind = folder(data)
    volume = open_volume(path)
    odd = path / f"section_10.{kind}"
    whole = odd.read_bytes()
    Image.new("L", (31, 20)).save(odd)
    with pytest.raises(VolumeFormatError, match=rf"section_10.{kind} is \(20, 31\) uint8, but sec"):
        open_volume(path)
    with pytest.raises(VolumeReadError, match=rf"section_10.{kind}.*no longer \(20, 30\)"):
        volume[9:11, 0:20, 0:30]
    odd.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeReadError, match=rf"section_10.{kind}"):
        volume[9:11, 0:20, 0:30]
    odd.write_bytes(b"")
    with pytest.raises(VolumeFormatError, match=rf"section_10.{kind}"):
        open_volume(path)
    odd.unlink()
    with pytest.raises(VolumeReadError, match=rf"section_10.{kind}"):
        volume[9:11, 0:20, 0:30]
    np.testing.assert_array_equal(volume[0:10, 0:20, 0:30], data[:10])
    Image.new("L", (30, 20)).save(path / f"b.{'tif' if kind == 'png' else 'png'}")
    with pytest.raises(VolumeFormatError, match="TIFF and PNG"):
        open_volume(path)


def test_colours_masks_and_palettes_in_png(tmp_path, voxels):
    colours = voxels((20, 30, 3))
    for name, picture in (
        ("colour", Image.fromarray(colours)),
        ("mask", Image.fromarray(colours[..., 0] > 9)),
        ("palette", Image.fromarray(colours).quantize(7)),
    ):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
    colour = open_volume(tmp_path / "colour")
    np.testing.assert_array_equal(
        colour.read_channels(Box((0, 3, 4), (1, 6, 26)))[:, 0],
        colours[3:9, 4:30].transpose(2, 0, 1),
    )
    np.testing.assert_array_equal(
        open_volume(tmp_path / "colour", channel=2)[0:1, 3:9, 4:30][0], colours[3:9, 4:30, 2]
    )
    mask = open_volume(tmp_path / "mask")
    np.testing.assert_array_equal(mask[0:1, 0:20, 0:30][0], colours[..., 0] > 9)
    assert open_volume(tmp_path / "palette")[0:1, 0:20, 0:30].max() < 7


def test_a_large_section_is_no_attack(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "png").mkdir()
    Image.new("L", (40, 50), 7).save(tmp_path / "png" / "0.png")
    assert (open_volume(tmp_path / "png")[0:1, 0:50, 0:40] == 7).all()


@pytest.mark.parametrize(
    "names, missing",
    [
        (
            ("s0", "s1", "s5"),
            r"3 of 6 slices are missing, between s1\.png and s5\.png; .*data\.gaps=close",
        ),
        (("a2_00010", "a2_00020", "a2_00040", "a2_00060"), r"2 of 6 .* the first of 2 gaps"),
        (("s0", "s5", "s10", "s15"), None),  # every fifth, on purpose
        (("s3",), None),
        (("x1y1", "x1y3", "x2y1"), None),  # no one number says where a slice lies
        (("alpha", "beta7", "gamma9"), None),
    ],
)
def test_a_gap_in_the_numbers_of_slices_is_named(tmp_path, names, missing):
    for number, name in enumerate(names):
        Image.new("L", (5, 4), 10 * number).save(tmp_path / f"{name}.png")
    if missing:
        with pytest.raises(VolumeFormatError, match=missing):
            open_volume(tmp_path)
    volume = open_volume(tmp_path, gaps="close" if missing else "refuse")
    assert volume[:, 0:1, 0:1].ravel().tolist() == [10 * n for n in range(len(names))]
    assert open_volume(f"{tmp_path}?gaps=close").shape == volume.shape
    with pytest.raises(VolumeFormatError, match="gaps is 'shut'; wanted close"):
        open_volume(f"{tmp_path}?gaps=shut")


def test_a_png_that_declares_more_than_its_bytes_hold_is_refused(tmp_path):
    path = tmp_path / "0.png"
    Image.new("L", (5, 4)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + whole[24:])
    with pytest.raises(VolumeFormatError, match=r"0\.png is declared to have 2147483647 × 2147"):
        open_volume(tmp_path)
    Image.new("L", (20_000, 5_000)).save(path)  # all of one value: as small as it gets
    assert open_volume(tmp_path).shape == (1, 5_000, 20_000)

import json
import pickle
import tempfile
import zlib

import numcodecs
import numpy as np
import pytest
import tensorstore
import zarr
from em_data import (
    Box,
    VolumeFormatError,
    VolumeReadError,
    grey_range,
    open_volume,
    place_labels,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

# Real volumes ------------------------------------------------------------------------------------


def test_fib25_is_ome_zarr_04(real_data):
    volume = open_volume(real_data / "fib25.zarr" / "sample1_raw")
    assert volume.format == "OME-Zarr 0.4"
    assert (volume.shape, volume.dtype, volume.voxel_size_nm) == ((250,) * 3, np.uint8, (10,) * 3)
    assert (volume.chunk_vx, volume.shard_vx, volume.compression) == ((64,) * 3, None, "blosc zstd")
    assert [level.voxel_size_nm for level in volume.levels] == [(10,) * 3, (20,) * 3]
    direct = zarr.open(real_data / "fib25.zarr" / "sample1_raw" / "s0", mode="r")
    np.testing.assert_array_equal(volume[60:70, 61:133, 200:250], direct[60:70, 61:133, 200:250])


def test_vnc_is_sharded_ome_zarr_05(real_data):
    volume = open_volume(real_data / "vnc_sstem.zarr" / "raw")
    assert volume.format == "OME-Zarr 0.5"
    assert (volume.shape, volume.voxel_size_nm) == ((20, 1024, 1024), (45.0, 4.6, 4.6))
    assert volume.chunk_vx == (1, 256, 256) and volume.shard_vx is not None
    assert volume[19:20, 1000:1024, 1000:1024].std() > 0


def test_level_is_chosen_by_physical_size(real_data):
    path = real_data / "fib25.zarr" / "sample1_raw"
    coarse = open_volume(path, at_nm=(18, 18, 18))
    assert (coarse.level, coarse.shape, coarse.voxel_size_nm) == (1, (125,) * 3, (20,) * 3)
    assert coarse.origin_nm == (5.0, 5.0, 5.0)
    assert "20 × 20 × 20 nm, level 1 (s1) of 0 … 1" in str(coarse)
    assert open_volume(path, at_nm=(13, 13, 13)).level == 0


# Byte-equal to tensorstore and zarr-python -------------------------------------------------------

V2 = {
    "none": None,
    "blosc lz4": numcodecs.Blosc("lz4"),
    "blosc zstd": numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE),
    "zlib": numcodecs.Zlib(),
    "gzip": numcodecs.GZip(),
    "bz2": numcodecs.BZ2(),
    "zstd": numcodecs.Zstd(),
}
V2_TENSORSTORE = {
    "none": None,
    "blosc lz4": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
    "blosc zstd": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2},
    "zlib": {"id": "zlib", "level": 1},
    "gzip": {"id": "gzip", "level": 1},
    "bz2": {"id": "bz2", "level": 1},
    "zstd": {"id": "zstd", "level": 1},
}
V3 = {
    "none": None,
    "blosc": BloscCodec(cname="zstd"),
    "gzip": GzipCodec(),
    "zstd": ZstdCodec(),
    "zstd crc32c": [ZstdCodec(), Crc32cCodec()],
}
V3_TENSORSTORE = {
    "none": [],
    "blosc": [{"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "typesize": 1}}],
    "gzip": [{"name": "gzip", "configuration": {"level": 3}}],
    "zstd": [{"name": "zstd", "configuration": {"level": 3}}],
    "zstd crc32c": [{"name": "zstd", "configuration": {"level": 3}}, {"name": "crc32c"}],
}


@st.composite
def layouts(draw, zarr_format):
    """What the formats leave open besides the codec."""
    shape = tuple(draw(st.integers(1, 20)) for _ in range(3))
    chunk = tuple(draw(st.integers(1, n)) for n in shape)
    sharded = zarr_format == 3 and draw(st.booleans())
    dtype = draw(st.sampled_from(["|u1", "<u2", ">u2", "<u4", ">i4", "<u8", "<f4", ">f4"]))
    return {
        "shape": shape,
        "chunk": chunk,
        "shard": tuple(c * draw(st.integers(1, 3)) for c in chunk) if sharded else None,
        "dtype": np.dtype(dtype),
        "separator": draw(st.sampled_from("./")),
        "fill": draw(st.integers(0, 9)),
        "seed": draw(st.integers(0, 2**20)),
        "hole": draw(st.booleans()),
    }


def by_zarr_python(path, how):
    kind = {"name": "v2" if how["zarr_format"] == 2 else "default", "separator": how["separator"]}
    dtype, order = how["dtype"], {}
    if how["zarr_format"] == 3:
        # zarr v3 keeps the byte order in a codec, not in the type.
        endian = {">": "big", "<": "little"}.get(dtype.byteorder if dtype.byteorder != "=" else "<")
        order = {"serializer": BytesCodec(endian=endian)}
        dtype = dtype.newbyteorder("=")
    return zarr.create_array(
        path,
        shape=how["shape"],
        dtype=dtype,
        chunks=how["chunk"],
        shards=how["shard"],
        compressors=(V2 if how["zarr_format"] == 2 else V3)[how["codec"]],
        filters=None,
        fill_value=how["fill"],
        zarr_format=how["zarr_format"],
        chunk_key_encoding=kind,
        **order,
    )


def by_tensorstore(path, how):
    fill, store = how["fill"], f"file://{path}/"
    if how["zarr_format"] == 2:
        metadata = {
            **{"shape": how["shape"], "chunks": how["chunk"], "dtype": how["dtype"].str},
            **{"compressor": V2_TENSORSTORE[how["codec"]], "fill_value": fill, "order": "F"},
            "dimension_separator": how["separator"],
        }
        spec = {"driver": "zarr", "kvstore": store, "metadata": metadata}
        return tensorstore.open(spec, create=True).result()
    endian = "big" if how["dtype"].byteorder == ">" else "little"
    inner = [
        {"name": "bytes", "configuration": {"endian": endian}},
        *V3_TENSORSTORE[how["codec"]],
    ]
    if how["shard"]:
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        configuration = {"chunk_shape": how["chunk"], "codecs": inner, "index_codecs": index}
        inner = [{"name": "sharding_indexed", "configuration": configuration}]
    metadata = {
        "shape": how["shape"],
        "data_type": how["dtype"].newbyteorder("=").name,
        "codecs": inner,
        "fill_value": fill,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": how["shard"] or how["chunk"]},
        },
        "chunk_key_encoding": {
            "name": "default",
            "configuration": {"separator": how["separator"]},
        },
    }
    spec = {"driver": "zarr3", "kvstore": store, "metadata": metadata}
    return tensorstore.open(spec, create=True).result()


def read_by_tensorstore(path, zarr_format):
    driver = "zarr" if zarr_format == 2 else "zarr3"
    return tensorstore.open({"driver": driver, "kvstore": f"file://{path}/"}).result()


@pytest.mark.parametrize("writer", [by_zarr_python, by_tensorstore])
@pytest.mark.parametrize(
    ("zarr_format", "codec"), [*((2, codec) for codec in V2), *((3, codec) for codec in V3)]
)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_box_of_any_store_equals_other_readers(writer, zarr_format, codec, data):
    how = data.draw(layouts(zarr_format)) | {"zarr_format": zarr_format, "codec": codec}
    shape = how["shape"]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/a.zarr"
        written = writer(path, how)
        rng = np.random.default_rng(how["seed"])
        voxels = rng.integers(0, 200, shape).astype(how["dtype"].newbyteorder("="))
        if how["hole"]:  # one chunk is never written
            part = tuple(slice(0, n) for n in (how["shard"] or how["chunk"]))
            voxels[part] = how["fill"]
        written[...] = voxels
        volume = open_volume(path)
        assert volume.shape == shape and volume.chunk_vx == how["chunk"]
        assert volume.dtype == voxels.dtype and volume.shard_vx == how["shard"]
        theirs = read_by_tensorstore(path, zarr_format)
        others = zarr.open_array(path, mode="r")
        for _ in range(3):
            origin = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
            size = tuple(
                data.draw(st.integers(1, n - o)) for n, o in zip(shape, origin, strict=True)
            )
            box = Box(origin, size)
            read = volume.read(box)
            assert read.dtype == voxels.dtype and read.dtype.isnative
            np.testing.assert_array_equal(read, voxels[box.slices])
            np.testing.assert_array_equal(read, theirs[box.slices].read().result())
            np.testing.assert_array_equal(read, others[box.slices])
        copy = pickle.loads(pickle.dumps(volume))
        np.testing.assert_array_equal(copy.read(box), read)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_array(tmp_path, voxels, zarr_format):
    data = voxels((5, 7, 9))
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(2, 3, 4), zarr_format=zarr_format)
    volume = open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume[1:5, 2:7, 0:9], data[1:5, 2:7, 0:9])
    assert volume.format == f"zarr v{zarr_format}" and volume.voxel_size_nm is None


def test_plain_zarr_array_whose_axes_have_names(tmp_path, voxels):
    data = voxels((3, 4, 8, 8))
    for name, names, choice in (("a", "czyx", {"channel": 2}), ("b", "tzyx", {"time": 2})):
        zarr.create_array(tmp_path / name, data=data, dimension_names=names)
        np.testing.assert_array_equal(
            open_volume(tmp_path / name, **choice)[1:3, 0:8, 0:8], data[2, 1:3]
        )
    zarr.create_array(tmp_path / "c", data=data[0], dimension_names="xyz")
    with pytest.raises(VolumeFormatError, match="axes are"):
        open_volume(tmp_path / "c")
    zarr.create_array(tmp_path / "d", data=data[0], dimension_names=["dim_0", None, "dim_2"])
    assert open_volume(tmp_path / "d").shape == (4, 8, 8)
    with pytest.raises(VolumeFormatError, match="no channel axis"):
        open_volume(tmp_path / "d", channel=1)
    zarr.create_array(tmp_path / "e", data=data)
    with pytest.raises(VolumeFormatError, match=r"\(3, 4, 8, 8\); wanted real numbers along three"):
        open_volume(tmp_path / "e")


# Damage ------------------------------------------------------------------------------------------

DAMAGED = {
    **{f"v2 {name}": (2, {"compressors": codec}) for name, codec in V2.items()},
    **{f"v3 {name}": (3, {"compressors": codec}) for name, codec in V3.items()},
    "v3 sharded": (3, {"shards": (4, 32, 32)}),
    "v3 sharded blosc": (3, {"shards": (4, 32, 32), "compressors": BloscCodec()}),
    "v3 sharded none": (3, {"shards": (4, 32, 32), "compressors": None}),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_cut_chunk_is_an_error_that_names_it(tmp_path, voxels, kind):
    """zarr-python itself returns data for a cut blosc chunk and for an empty shard."""
    zarr_format, how = DAMAGED[kind]
    data = voxels((8, 32, 32), np.uint16)
    zarr.create_array(
        tmp_path / "a.zarr", data=data, chunks=(2, 16, 16), zarr_format=zarr_format, **how
    )
    name = "1.0.0" if zarr_format == 2 else "c/1/0/0"
    first = 4 if "shards" in how else 2  # slice at which the file begins
    file = tmp_path / "a.zarr" / name
    whole = file.read_bytes()
    volume = open_volume(tmp_path / "a.zarr")
    for length in (0, 1, 14, 20, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(VolumeReadError, match=f"a.zarr/{name}.*restore this file"):
            volume[0:8, 0:32, 0:32]
        with pytest.raises(VolumeReadError, match=rf"\(1, 1, 1\) at \({first}, 0, 0\)"):
            volume[first : first + 1, 0:1, 0:1]
        np.testing.assert_array_equal(volume[0:2, 0:32, 0:32], data[:2])
    file.write_bytes(whole)
    np.testing.assert_array_equal(volume[0:8, 0:32, 0:32], data)
    file.unlink()  # absent is legal: the fill value
    assert not volume[first : first + 2, 0:16, 0:16].any()


def test_chunk_of_other_bytes_is_an_error_that_names_it(tmp_path, voxels):
    zarr.create_array(
        tmp_path / "a.zarr", data=voxels((4, 16, 16)), chunks=(2, 8, 8), compressors=GzipCodec()
    )
    file = tmp_path / "a.zarr" / "c" / "1" / "0" / "1"
    file.write_bytes(zlib.compress(b"not gzip but zlib"))
    with pytest.raises(VolumeReadError, match=r"c/1/0/1 cannot be decoded"):
        open_volume(tmp_path / "a.zarr")[0:4, 0:16, 0:16]


# Metadata ----------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    """A function that writes a small OME-Zarr image with given metadata."""

    def write(axes, steps, shape=(4, 6, 8), image_steps=()):
        group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
        group.create_array("a", data=np.arange(np.prod(shape), dtype=np.uint16).reshape(shape))
        multiscale = {"axes": axes, "datasets": [{"path": "a", "coordinateTransformations": steps}]}
        if image_steps:
            multiscale["coordinateTransformations"] = image_steps
        group.attrs["multiscales"] = [multiscale]
        return tmp_path / "image.zarr"

    return write


def axes(names="zyx", unit="nanometer"):
    return [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in names]


def test_units_and_transformations_are_composed(image):
    path = image(
        axes(unit="micrometer"),
        [
            {"type": "scale", "scale": [0.04, 0.004, 0.004]},
            {"type": "translation", "translation": [1, 2, 3]},
        ],
        image_steps=[{"type": "scale", "scale": [2, 2, 2]}],
    )
    volume = open_volume(path)
    assert volume.voxel_size_nm == (80, 8, 8)
    assert volume.origin_nm == pytest.approx((2000, 4000, 6000))


def test_missing_unit_stays_unknown(image):
    path = image(axes(unit=None), [{"type": "scale", "scale": [40, 4, 4]}])
    assert open_volume(path).voxel_size_nm is None
    assert open_volume(path, voxel_size_nm=(40, 4, 4)).voxel_size_nm == (40, 4, 4)
    with pytest.raises(VolumeFormatError, match="no unit"):
        open_volume(path, at_nm=(40, 4, 4))


def test_missing_scale_stays_unknown(image):
    assert open_volume(image(axes(), [])).voxel_size_nm is None


def test_axes_of_ome_ngff_03_have_no_units(image):
    assert open_volume(image(["z", "y", "x"], [])).voxel_size_nm is None


SCALE = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]


@pytest.mark.parametrize(
    ("axes", "steps", "message"),
    [
        (axes("xyz"), SCALE, "axes are"),
        (axes("yx"), SCALE, "axes are"),
        ([], SCALE, "axes are missing"),
        (axes("czyx"), SCALE, r"shape \(4, 6, 8\), but the axes are"),
        (axes("zyx", "parsec"), SCALE, "parsec"),
        (axes(), [{"type": "scale", "scale": [0, 1, 1]}], "above 0"),
        (axes(), [{"type": "scale", "scale": [1, 1]}], "wanted a scale or translation of 3"),
        (axes(), [{"type": "affine", "affine": []}], "affine.*not understood"),
        ([{"type": "space"}], SCALE, "OME-NGFF 0.4. is not understood"),
    ],
)
def test_odd_metadata_is_refused_by_name(image, axes, steps, message):
    with pytest.raises(VolumeFormatError, match=message):
        open_volume(image(axes, steps))


def test_channels_and_times_are_dropped_chosen_or_refused(write_image, voxels):
    data = voxels((2, 3, 4, 16, 16), np.uint16)
    omero = {"omero": {"channels": [{"label": "DAPI"}, {"label": "EM"}, {"label": "other"}]}}
    path = write_image([data, data[..., ::2, ::2]], axes="tczyx", extra=omero)
    volume = open_volume(path, channel="EM", time=1)
    assert volume.shape == (4, 16, 16) and volume.voxel_size_nm == (40, 8, 8)
    np.testing.assert_array_equal(volume[1:3, 2:9, 0:16], data[1, 1, 1:3, 2:9])
    coarse = open_volume(path, channel=2, time=0, at_nm=(80, 16, 16))
    np.testing.assert_array_equal(coarse[0:4, 0:8, 0:8], data[0, 2, :, ::2, ::2])
    assert volume.channels == ("EM",)
    several = open_volume(path, time=1)
    assert several.channels == ("DAPI", "EM", "other") and several.shape == (4, 16, 16)
    assert several.nbytes == data[1].nbytes and "3 channels: DAPI, EM, other" in str(several)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(several)).read_channels(Box((1, 2, 0), (2, 7, 16))),
        data[1, :, 1:3, 2:9],
    )
    np.testing.assert_array_equal(
        volume.read_channels(Box((1, 2, 0), (2, 7, 16))), data[1, 1:2, 1:3, 2:9]
    )
    one_wanted = r"3 channels \(DAPI, EM, other\); choose one with channel=0 … 2 or its name"
    for use in (
        lambda: several[0:1, 0:2, 0:2],
        several.held_in_memory,
        lambda: grey_range(several),
    ):
        with pytest.raises(VolumeFormatError, match=one_wanted):
            use()
    with pytest.raises(VolumeFormatError, match=one_wanted):
        place_labels(volume, {"cells": several})
    for choice, message in (
        ({"channel": 0}, "2 time points; choose one with time=0 … 1"),
        ({"channel": 3, "time": 0}, "not channel=3"),
        ({"channel": "GFP", "time": 0}, "no channel 'GFP'; it has 3 channels: DAPI, EM"),
    ):
        with pytest.raises(VolumeFormatError, match=message):
            open_volume(path, **choice)
    single = write_image([data[:1, :1]], "single.zarr", axes="tczyx", zarr_format=2)
    np.testing.assert_array_equal(open_volume(single)[0:4, 0:16, 0:16], data[0, 0])


def test_groups_that_are_no_image_say_what_they_are(tmp_path, write_image, voxels):
    write_image([voxels((4, 8, 8))], "many.zarr/0")
    group = zarr.open_group(tmp_path / "many.zarr", mode="w")
    write_image([voxels((4, 8, 8))], "many.zarr/0")
    for attributes, message in (
        (
            {"bioformats2raw.layout": 3},
            r"several images \(bioformats2raw layout\): 0; name one, as",
        ),
        ({"plate": {}}, "plate or a well"),
        ({"labels": ["0"]}, r"label images \(0\)"),
        ({"multiscales": []}, r"name one of the arrays or images in it \(0\)"),
    ):
        group.attrs["ome"] = {"version": "0.5", **attributes}
        with pytest.raises(VolumeFormatError, match=message):
            open_volume(tmp_path / "many.zarr")
    assert open_volume(tmp_path / "many.zarr" / "0").shape == (4, 8, 8)


def test_level_named_in_metadata_but_absent(image):
    path = image(axes(), SCALE)
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = "gone"
    (path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(VolumeFormatError, match="gone"):
        open_volume(path)


def test_codec_that_nobody_knows_is_named(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 2, 2), dtype="u1", compressors=ZstdCodec())
    file = tmp_path / "a.zarr" / "zarr.json"
    file.write_text(file.read_text().replace('"zstd"', '"future-codec"'))
    with pytest.raises(VolumeFormatError, match="future-codec"):
        open_volume(tmp_path / "a.zarr")


def test_labels_of_a_channel(write_image, voxels):
    data = voxels((2, 4, 16, 16))
    path = write_image([data], axes="czyx")
    group = zarr.open_group(path / "labels", mode="w")
    group.attrs["ome"] = {"labels": ["cells"]}
    write_image([data[1] > 9], "image.zarr/labels/cells")
    label = open_volume(path, channel=1).labels("cells")
    np.testing.assert_array_equal(label[0:4, 0:16, 0:16], data[1] > 9)


def test_labels_added_after_consolidation_are_found(tmp_path, write_image, voxels):
    path = write_image([voxels((4, 8, 8))], zarr_format=2)
    zarr.consolidate_metadata(path, zarr_format=2)
    group = zarr.open_group(path / "labels", mode="w", zarr_format=2)
    group.attrs["labels"] = ["cells"]
    assert open_volume(path).label_names == ("cells",)

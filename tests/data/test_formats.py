import json

import numpy as np
import pytest
import zarr
from em_data import BoxError, VolumeFormatError, VolumeNotFoundError, VolumeReadError, open_volume


def test_fib25_is_ome_zarr_04(real_data):
    volume = open_volume(real_data / "fib25.zarr" / "sample1_raw")
    assert volume.format == "OME-Zarr 0.4"
    assert (volume.shape, volume.dtype, volume.voxel_size_nm) == ((250,) * 3, np.uint8, (10,) * 3)
    assert [level.voxel_size_nm for level in volume.levels] == [(10,) * 3, (20,) * 3]
    direct = zarr.open(real_data / "fib25.zarr" / "sample1_raw" / "s0", mode="r")
    np.testing.assert_array_equal(volume[60:70, 61:133, 200:250], direct[60:70, 61:133, 200:250])


def test_vnc_is_sharded_ome_zarr_05(real_data):
    volume = open_volume(real_data / "vnc_sstem.zarr" / "raw")
    assert volume.format == "OME-Zarr 0.5"
    assert (volume.shape, volume.voxel_size_nm) == ((20, 1024, 1024), (45.0, 4.6, 4.6))
    assert volume[19:20, 1000:1024, 1000:1024].std() > 0


def test_level_is_chosen_by_physical_size(real_data):
    path = real_data / "fib25.zarr" / "sample1_raw"
    coarse = open_volume(path, at_nm=(18, 18, 18))
    assert (coarse.level, coarse.shape, coarse.voxel_size_nm) == (1, (125,) * 3, (20,) * 3)
    assert coarse.origin_nm == (5.0, 5.0, 5.0)
    assert open_volume(path, at_nm=(13, 13, 13)).level == 0


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
    assert volume.voxel_size_nm == pytest.approx((80, 8, 8))
    assert volume.origin_nm == pytest.approx((2000, 4000, 6000))


def test_missing_unit_stays_unknown(image):
    path = image(axes(unit=None), [{"type": "scale", "scale": [40, 4, 4]}])
    assert open_volume(path).voxel_size_nm is None
    assert open_volume(path, voxel_size_nm=(40, 4, 4)).voxel_size_nm == (40, 4, 4)
    with pytest.raises(VolumeFormatError, match="no unit"):
        open_volume(path, at_nm=(40, 4, 4))


@pytest.mark.parametrize(
    ("names", "unit", "message"),
    [
        ("xyz", "nanometer", "axes are"),
        ("yx", "nanometer", "axes are"),
        ("zyx", "parsec", "parsec"),
    ],
)
def test_odd_axes_are_refused_by_name(image, names, unit, message):
    steps = [{"type": "scale", "scale": [1.0] * len(names)}]
    with pytest.raises(VolumeFormatError, match=message):
        open_volume(image(axes(names, unit), steps))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_array(tmp_path, zarr_format):
    data = np.random.default_rng(0).integers(0, 255, (5, 7, 9), np.uint8)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=data.shape, dtype="u1", chunks=(2, 3, 4), zarr_format=zarr_format
    )
    array[:] = data
    volume = open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(volume[1:5, 2:7, 0:9], data[1:5, 2:7, 0:9])
    assert volume.voxel_size_nm is None


def test_npy_is_mapped_and_a_truncated_one_is_named(tmp_path):
    path = tmp_path / "a.npy"
    data = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    np.save(path, data)
    np.testing.assert_array_equal(open_volume(path)[0:3, 0:4, 1:5], data[:, :, 1:])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(VolumeFormatError, match=r"a\.npy"):
        open_volume(path)


def test_what_is_no_volume_is_said_so(tmp_path):
    with pytest.raises(VolumeNotFoundError, match="nowhere"):
        open_volume(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("not a volume")
    with pytest.raises(VolumeFormatError, match=r"notes\.txt"):
        open_volume(tmp_path / "notes.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VolumeFormatError, match="folder"):
        open_volume(tmp_path / "folder")
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    group.create_array("inside", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(VolumeFormatError, match="inside"):
        open_volume(tmp_path / "group.zarr")
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    with pytest.raises(VolumeFormatError, match=r"\(4, 4\)"):
        open_volume(tmp_path / "flat.npy")


def test_damaged_chunk_is_an_error_not_zeros(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(4, 64, 64), dtype="u1", chunks=(2, 64, 64)
    )
    array[:] = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    chunk = tmp_path / "a.zarr" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:100])
    volume = open_volume(tmp_path / "a.zarr")
    assert volume[0:2, 0:64, 0:64].any()
    with pytest.raises(VolumeReadError, match=r"\(2, 64, 64\) at \(2, 0, 0\)"):
        volume[2:4, 0:64, 0:64]


def test_synthetic_address_renders_what_is_read():
    volume = open_volume("synthetic:shape=6x64x80,voxel_nm=10x10x10,seed=3")
    assert (volume.shape, volume.voxel_size_nm) == ((6, 64, 80), (10, 10, 10))
    whole = volume[0:6, 0:64, 0:80]
    np.testing.assert_array_equal(volume[2:4, 10:50, 5:70], whole[2:4, 10:50, 5:70])
    assert volume.labels("classes")[0:6, 0:64, 0:80].max() >= 1
    with pytest.raises(VolumeFormatError, match="synapses"):
        volume.labels("synapses")
    with pytest.raises(VolumeFormatError, match="sed=3"):
        open_volume("synthetic:sed=3")


def test_boxes_outside_and_odd_indices_are_refused():
    volume = open_volume(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(BoxError, match="empty on z"):
        volume[4:8, 0:4, 0:4]
    with pytest.raises(TypeError, match="without a step"):
        volume[0:4:2, 0:4, 0:4]
    with pytest.raises(TypeError, match="three slices"):
        volume[0]


def test_volumes_travel_by_pickle(tmp_path, real_data):
    import pickle

    for source in (real_data / "fib25.zarr" / "sample1_raw", "synthetic:shape=4x32x32"):
        volume = open_volume(source)
        copy = pickle.loads(pickle.dumps(volume))
        np.testing.assert_array_equal(copy[0:2, 0:9, 0:9], volume[0:2, 0:9, 0:9])


def test_level_named_in_metadata_but_absent(image):
    path = image(axes(), [{"type": "scale", "scale": [1, 1, 1]}])
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["path"] = "gone"
    (path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(VolumeFormatError, match="gone"):
        open_volume(path)

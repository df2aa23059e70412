import numpy as np
import pytest
from em_data import Box, BoxError, StoreExistsError, new_store, open_volume, tiles


def test_a_store_reads_back_with_its_units_and_labels(tmp_path):
    draw = np.random.default_rng(0).integers
    raw, labels = draw(0, 255, (6, 150, 130), np.uint8), draw(0, 9, (6, 150, 130), np.uint32)
    path = tmp_path / "a.zarr"
    with new_store(path) as store:
        image = store.add_image(raw.shape, np.uint8, (40, 4, 4), origin_nm=(0, 8, 16))
        truth = store.add_image(raw.shape, np.uint32, (40, 4, 4), label="truth")
        for box in tiles(raw.shape, (4, 64, 64)):
            image.write(box, raw[box.slices])
            truth.write(box, labels[box.slices])
        assert not path.exists()
    volume = open_volume(path)
    assert (volume.voxel_size_nm, volume.origin_nm) == ((40, 4, 4), (0, 8, 16))
    np.testing.assert_array_equal(volume[0:6, 0:150, 0:130], raw)
    np.testing.assert_array_equal(volume.labels("truth")[0:6, 0:150, 0:130], labels)
    assert list(tmp_path.iterdir()) == [path]


def test_the_pyramid_halves_towards_cubes(tmp_path):
    raw = np.random.default_rng(0).integers(0, 255, (4, 130, 96), np.uint8)
    with new_store(tmp_path / "a.zarr") as store:
        store.add_image(raw.shape, np.uint8, (16, 4, 4)).write(Box((0, 0, 0), raw.shape), raw)
        store.add_image(raw.shape, np.uint8, (16, 4, 4), label="l").write(
            Box((0, 0, 0), raw.shape), raw
        )
    volume = open_volume(tmp_path / "a.zarr")
    assert [level.shape for level in volume.levels] == [(4, 130, 96), (4, 65, 48), (4, 33, 24)]
    half = open_volume(tmp_path / "a.zarr", at_nm=(16, 8, 8))
    assert half.origin_nm == (0, 2, 2)
    means = raw.reshape(4, 65, 2, 48, 2).mean((2, 4))
    np.testing.assert_allclose(half[0:4, 0:65, 0:48], means, atol=0.51)
    picked = open_volume(tmp_path / "a.zarr" / "labels" / "l", at_nm=(16, 8, 8))
    np.testing.assert_array_equal(picked[0:4, 0:65, 0:48], raw[:, ::2, ::2])
    assert picked.origin_nm == (0, 0, 0)


def test_a_failure_leaves_nothing_and_a_taken_place_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(RuntimeError, match="power cut"), new_store(path) as store:
        store.add_image((2, 4, 4), np.uint8, (1, 1, 1))
        raise RuntimeError("power cut")
    assert list(tmp_path.iterdir()) == []
    path.mkdir()
    (path / "precious").write_text("data")
    with pytest.raises(StoreExistsError, match="exists already"), new_store(path):
        pass
    assert (path / "precious").read_text() == "data"
    with new_store(path, overwrite=True) as store:
        store.add_image((2, 4, 4), np.uint8, (1, 1, 1))
    assert open_volume(path).shape == (2, 4, 4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_that_appeared_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.zarr"
    with pytest.raises(StoreExistsError, match="exists already"), new_store(path) as store:
        store.add_image((2, 4, 4), np.uint8, (1, 1, 1))
        path.mkdir()
        (path / "precious").write_text("data")
    assert (path / "precious").read_text() == "data"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_can_be_overwritten(tmp_path):
    path = tmp_path / "a.zarr"
    path.write_text("a file")
    with new_store(path, overwrite=True) as store:
        store.add_image((2, 4, 4), np.uint8, (1, 1, 1))
    assert path.is_dir() and list(tmp_path.iterdir()) == [path]


def test_a_block_must_fit_its_box(tmp_path):
    with new_store(tmp_path / "a.zarr") as store:
        image = store.add_image((2, 4, 4), np.uint8, (1, 1, 1))
        with pytest.raises(BoxError, match="does not fill"):
            image.write(Box((0, 0, 0), (2, 4, 4)), np.zeros((2, 4, 3), np.uint8))
        with pytest.raises(BoxError, match="exceeds"):
            image.write(Box((1, 0, 0), (2, 4, 4)), np.zeros((2, 4, 4), np.uint8))

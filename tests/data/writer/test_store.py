import os
import shutil
import signal
import subprocess
import threading

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


@pytest.fixture
def screenshot(tmp_path):
    """A function that shows a layer in Neuroglancer, in a real browser, and gives what one sees."""
    neuroglancer = pytest.importorskip("neuroglancer")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium to look with; on Debian: apt install chromium")
    browsers = []

    def shoot(layer, size_nm, centre_vx):
        viewer = neuroglancer.Viewer()
        with viewer.txn() as state:
            state.layers["layer"] = layer
            state.dimensions = neuroglancer.CoordinateSpace(
                names=["x", "y", "z"], units="nm", scales=size_nm[::-1]
            )
            state.position = centre_vx[::-1]
            state.cross_section_scale = 0.5  # each voxel is two pixels wide
            state.layout = "xy"
            state.show_axis_lines = state.show_scale_bar = False
            state.show_default_annotations = False
        options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        options += ["--window-size=400,500", f"--user-data-dir={tmp_path / 'browser'}"]
        browser = subprocess.Popen(
            [chromium, *options, viewer.get_viewer_url()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that all of its processes can be ended
        )
        browsers.append(browser)
        taken, pictures = threading.Event(), []
        viewer.async_screenshot(lambda state: (pictures.append(state.screenshot), taken.set()))
        assert taken.wait(120), "Neuroglancer did not show the volume in two minutes"
        return pictures[0].image_pixels[..., :3]

    yield shoot
    for browser in browsers:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
    neuroglancer.stop()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Neuroglancer's server
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_neuroglancer_shows_what_was_written(tmp_path, http_server, screenshot):
    """Its client in a browser finds units, shards and channels, and draws every voxel in its place."""
    import neuroglancer

    voxels = np.empty((2, 8, 128, 128), np.uint8)
    voxels[:, :, :, :64], voxels[:, :, :, 64:] = 40, 60
    voxels[1] += 130
    with new_store(tmp_path / "a.zarr") as store:
        image = store.add_image(
            voxels.shape[1:],
            np.uint8,
            (40, 8, 8),
            origin_nm=(80, 16, 16),  # the middle of a voxel, at (2, 2, 2) of the viewer
            channels=("membrane", "mitochondria"),
            chunk_vx=(8, 32, 32),
            shard_vx=(8, 128, 128),
        )
        image.write(Box((0, 0, 0), voxels.shape[1:]), voxels)
    layer = neuroglancer.ImageLayer(
        source=f"zarr3://{http_server.url}/a.zarr/",
        shader="void main() { emitGrayscale(float(getDataValue().value) / 255.0); }",
        opacity=1,
        local_dimensions=neuroglancer.CoordinateSpace(names=["c'"], units="", scales=[1]),
        local_position=[1],
    )
    pixels = screenshot(layer, (40, 8, 8), (6, 65.5, 65.5))  # between two voxels
    row = pixels[len(pixels) * 3 // 4]
    assert (row == row[:, :1]).all()  # grey
    inside = np.flatnonzero((row[:, 0] == 170) | (row[:, 0] == 190))
    assert len(inside) == 256 and (np.diff(inside) == 1).all()
    assert (row[inside[:128], 0] == 170).all() and (row[inside[128:], 0] == 190).all()
    assert abs(inside[128] - len(row) / 2) <= 1  # in the middle, where the voxels were said to be

"""`emtrain view` in Neuroglancer's own client, in a real browser."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from em_data import Box, new_store
from em_train.look import view
from em_train.look.pictures import TRUTH_COLOURS, palette
from PIL import Image

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Neuroglancer's server
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHAPE, SIZE, ORIGIN = (8, 128, 128), (40.0, 8.0, 8.0), (80.0, 16.0, 24.0)
COLOURS = ((0, 0, 0), (200, 40, 40), (40, 60, 220))
EVERYTHING = Box((0, 0, 0), SHAPE)


@pytest.fixture
def stores(tmp_path):
    """A raw volume, grey 51 of 0 to 255, and a prediction in its right half."""
    raw = np.full(SHAPE, 51, np.uint8)
    raw[:, :16, :], raw[:, -16:, :] = 0, 255
    with new_store(tmp_path / "raw.zarr") as store:
        image = store.add_image(SHAPE, np.uint8, SIZE, origin_nm=ORIGIN)
        image.write(EVERYTHING, raw)
        store.add_image(SHAPE, np.uint32, SIZE, origin_nm=ORIGIN, label="cells").write(
            EVERYTHING, np.ones(SHAPE, np.uint32)
        )
    classes = np.zeros(SHAPE, np.uint8)
    classes[:, :64, 64:], classes[:, 64:, 64:] = 1, 2
    with new_store(tmp_path / "classes.zarr") as store:
        image = store.add_image(
            *(SHAPE, np.uint8, SIZE),
            origin_nm=ORIGIN,
            classes=("rest", "membrane", "mito"),
            colours=COLOURS,
        )
        image.write(EVERYTHING, classes)
    with new_store(tmp_path / "share.zarr") as store:
        image = store.add_image(
            *(SHAPE, np.uint8, SIZE),
            origin_nm=ORIGIN,
            channels=("membrane", "mito"),
            colours=COLOURS[1:],
        )
        image.write(EVERYTHING, np.stack([classes == 1, classes == 2]).astype(np.uint8) * 255)
    return tmp_path


@pytest.fixture
def browser():
    pytest.importorskip("neuroglancer")
    try:
        return view.find_browser()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def children():
    """The processes that this one has started."""
    texts = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return set(" ".join(texts).split())


def colours_of(path):
    """The colours of the four quarters of the volume, which fills most of a single panel."""
    pixels = np.asarray(Image.open(path))
    y, x = view.PICTURE_PX[1] // 2, view.PICTURE_PX[0] // 2
    return [pixels[y + dy, x + dx] for dy in (-200, 200) for dx in (-200, 200)]


@pytest.mark.parametrize("kind", ["classes", "share"])
def test_a_screenshot_shows_every_class_in_its_colour_and_place(stores, browser, kind):
    before = children()
    addresses = [str(stores / "raw.zarr"), str(stores / f"{kind}.zarr")]
    with view.opened(addresses, layout="xy") as viewer:
        view.save_screenshot(viewer, stores / "look.png")
    assert children() <= before  # no browser stays behind
    upper_left, upper_right, lower_left, lower_right = colours_of(stores / "look.png")
    np.testing.assert_allclose([upper_left, lower_left], 51, atol=1)
    for found, colour in ((upper_right, COLOURS[1]), (lower_right, COLOURS[2])):
        mixed = (1 - view.OPACITY) * 51 + view.OPACITY * np.array(colour)
        np.testing.assert_allclose(found, mixed, atol=3)
    picture = Image.open(stores / "look.png")
    assert picture.height == view.PICTURE_PX[1] + view.LEGEND_PX
    below = np.asarray(picture)[view.PICTURE_PX[1] :].reshape(-1, 3)
    assert {*COLOURS[1:]} <= {*map(tuple, below.tolist())}


def test_layers_have_units_places_names_and_stable_colours(stores):
    pytest.importorskip("neuroglancer")
    np.save(stores / "truth.npy", np.ones(SHAPE, np.uint8))
    addresses = [str(stores / name) for name in ("raw.zarr", "classes.zarr", "share.zarr")]
    with view.opened([*addresses, f"labels:{stores}/truth.npy"], position_vx=(1, 2, 3)) as viewer:
        state = viewer.viewer.state.to_json()
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert [*layers] == ["raw", "raw/cells", "classes", "share", "truth.npy"]
    assert state["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
    # The first voxel's centre is at the origin; its corner half a voxel before.
    assert state["position"] == [3 + 3, 2 + 2, 2 + 1]
    source = layers["raw"]["source"][0]
    assert [row[-1] for row in source["transform"]["matrix"]] == [2.5, 1.5, 1.5]
    assert source["url"].startswith("precomputed://http://127.0.0.1:")
    assert layers["raw"]["type"] == "image" and "range=[0, 255]" in layers["raw"]["shader"]
    assert layers["raw/cells"]["visible"] is False
    assert layers["classes"]["segmentColors"] == {"1": "#c82828", "2": "#283cdc"}
    assert "show_0_membrane" in layers["share"]["shader"]
    r, g, b = palette(2, TRUTH_COLOURS)[1]
    assert layers["truth.npy"]["segmentColors"]["1"] == f"#{r:02x}{g:02x}{b:02x}"
    assert state["selectedLayer"] == {"layer": "classes", "visible": True}


def test_volumes_of_one_name_are_told_apart_and_embeddings_are_colours(tmp_path):
    pytest.importorskip("neuroglancer")
    for folder in ("a", "b"):
        with new_store(tmp_path / folder / "e.zarr") as store:
            image = store.add_image(
                SHAPE, np.float32, SIZE, channels=[f"embedding {i}" for i in range(5)]
            )
            voxels = np.random.default_rng(0).normal(size=(5, *SHAPE)).astype(np.float32)
            image.write(EVERYTHING, voxels)
    with view.opened([str(tmp_path / folder / "e.zarr") for folder in "ab"]) as viewer:
        layers = viewer.viewer.state.to_json()["layers"]
    assert [layer["name"] for layer in layers] == ["0 e", "1 e"]
    assert "emitRGB(vec3(" in layers[0]["shader"] and "getDataValue(3)" not in layers[0]["shader"]


def test_the_command_prints_the_address_and_stays_until_ctrl_c(stores):
    pytest.importorskip("neuroglancer")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "em_train.cli", "view", stores / "raw.zarr"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = job.stderr.readline().removeprefix("look at ").strip()
        with urllib.request.urlopen(address) as page:
            assert b"neuroglancer" in page.read().lower()
        time.sleep(0.2)
        assert job.poll() is None
        job.send_signal(signal.SIGINT)
        assert job.wait(20) == 0
    finally:
        job.kill()
        job.wait()
        job.stderr.close()


def test_what_is_missing_is_named_with_its_command(stores, monkeypatch):
    monkeypatch.setattr(view.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt install chromium"):
        view.find_browser()
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'em-train\[view\]'"),
        view.opened([str(stores / "raw.zarr")]),
    ):
        pass
    with pytest.raises(ValueError, match="--layout is 'xx'"), view.opened(["a"], layout="xx"):
        pass

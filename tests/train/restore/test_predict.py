"""Restored volumes: the voxels of the network, the type and grey values of the volume, no seams."""

import json

import numpy as np
import pytest
import torch
from em_data import grey_range, interpolated, new_store, open_volume
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import restore as recipe
from em_train.restore.run import open_run
from typer.testing import CliRunner

SIZE, SHAPE = (40.0, 8.0, 8.0), (8, 150, 140)


def write(path, voxels, size=SIZE):
    with new_store(path) as store:
        store.add_image(voxels.shape, voxels.dtype, size).write(
            Box((0, 0, 0), voxels.shape), voxels
        )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Volumes of 8 and 16 bits, and runs of a few steps: of slices, of stacks, of super-resolution."""
    path = tmp_path_factory.mktemp("restore")
    values = np.random.default_rng(0).normal(120, 30, SHAPE).clip(0, 255)
    write(path / "v.zarr", values.astype(np.uint8))
    write(path / "deep.zarr", (values * 10 + 3000).astype(np.uint16))
    own = {
        "plain": {"task": "denoise"},
        "stack": {"task": "denoise", "slices": 3},
        "sharp": {"task": "super-resolution", "factor": 2},
    }
    for name, data in own.items():
        settings = {
            "data": {"volumes": [str(path / "v.zarr")], "patch_vx": 32, "batch_size": 2, **data},
            "model": {"unet": {"channels": [4, 6]}, "residual": False},
            "optim": {"lr": 0.02, "warmup_steps": 0},
            "run": {"steps": 4, "device": "cpu", "precision": "fp32", "ema_decay": 0.0},
        }
        config = resolve(recipe.Config, [Layer("test", settings)])
        assert recipe.run(config, new_run(path / name, config, "restore"))
    return path


@pytest.fixture
def predict(folder, tmp_path):
    """A function that predicts and opens what was written."""

    def call(run, volume, *options, code=0):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}.zarr"
        typed = ["predict", str(folder / run), "--data", str(folder / volume), "--out", str(out)]
        told = CliRunner().invoke(app, [*typed, *map(str, options)])
        assert told.exit_code == code, told.output + str(told.exception)
        return open_volume(out) if code == 0 else told

    return call


def whole(folder, run, volume):
    """What the network says about each slice as a whole, in [0, 1], and the volume in these units."""
    stored = open_run(folder / run)
    unit = grey_range(volume).unit(volume[:, :, :], clip=False)
    reach, halo = stored.data.slices // 2, stored.network.config.halo
    edges = (
        (reach, reach),
        (halo, halo + 6),
        (halo, halo + 6),
    )  # sides are multiples of the stride
    padded = np.pad(unit, edges, mode="reflect")
    found = []
    for z in range(volume.shape[0]):
        image = torch.from_numpy(padded[z : z + 2 * reach + 1])[None]
        even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
        with torch.inference_mode():
            found.append(stored.network(even)[0, 0].numpy())
    y, x = volume.shape[1:]
    return np.stack(found)[:, halo : halo + y, halo : halo + x], unit


@pytest.mark.parametrize(("run", "name"), [("plain", "v"), ("stack", "v"), ("plain", "deep")])
def test_tiles_equal_the_whole_and_grey_values_stay(folder, predict, run, name):
    volume = open_volume(folder / f"{name}.zarr")
    out = predict(run, f"{name}.zarr", "--grey", "volume", "--block", "32,128,128")
    assert (out.shape, out.dtype) == (volume.shape, volume.dtype)
    assert (out.voxel_size_nm, out.origin_nm) == (volume.voxel_size_nm, volume.origin_nm)
    found, unit = whole(folder, run, volume)
    grey = grey_range(volume)
    wide = (found - unit).mean()  # about what prediction takes off as drift
    wanted = (found - wide) * (grey.high - grey.low) + grey.low
    inner = (slice(1, -1), slice(16, -16), slice(16, -16))
    difference = out[:, :, :].astype(float) - wanted.clip(0, np.iinfo(volume.dtype).max)
    assert np.ptp(difference[inner]) < 1.2  # rounded, and one shift for all
    mean = volume[:, :, :].mean()
    assert abs(out[:, :, :].mean() - mean) < 0.02 * (grey.high - grey.low)


def test_bytes_do_not_depend_on_blocks_or_processes(folder, predict):
    one = predict("stack", "v.zarr")[:, :, :]
    other = predict("stack", "v.zarr", "--block", "32,128,256", "--processes", 1)[:, :, :]
    np.testing.assert_array_equal(one, other)


def test_strength_mixes_and_uncertainty_is_a_channel(folder, predict):
    volume = open_volume(folder / "deep.zarr")
    raw = volume[:, :, :].astype(float)
    full, none, half = (
        predict("plain", "deep.zarr", "--strength", s)[:, :, :].astype(float) for s in (1, 0, 0.5)
    )
    np.testing.assert_array_equal(none, raw)
    assert np.abs(half - (raw + full) / 2).max() <= 1
    both = predict("plain", "deep.zarr", "--uncertainty")
    assert both.channels == ("restored", "uncertainty") and both.dtype == volume.dtype
    restored, spread = both.read_channels(Box((0, 0, 0), both.shape))
    np.testing.assert_array_equal(restored, full)
    assert spread.mean() > 0.5
    again = predict("plain", "deep.zarr", "--tta", "--uncertainty")
    turned, same = again.read_channels(Box((0, 0, 0), both.shape))
    np.testing.assert_array_equal(same, spread)
    assert (turned != restored).any()


def test_super_resolution_lies_half_a_voxel_off(folder, predict, tmp_path):
    fine = open_volume(folder / "v.zarr")
    coarse = fine[:, :, :].reshape(8, 75, 2, 70, 2).mean((2, 4)).round().astype(np.uint8)
    write(folder / "coarse.zarr", coarse, (40.0, 16.0, 16.0))
    given = open_volume(folder / "coarse.zarr")
    out = predict("sharp", "coarse.zarr", "--grey", "volume")
    assert out.shape == (8, 150, 140) and out.voxel_size_nm == SIZE
    assert out.origin_nm == (0.0, -4.0, -4.0)  # the first fine voxel, of the first coarse one
    shown = interpolated(given, (1, 2, 2))[:, :, :].astype(float)
    assert np.abs(out[:, :, :] - shown).mean() < 40  # two steps have learned next to nothing
    write(folder / "coarser.zarr", coarse, (40.0, 24.0, 24.0))
    refused = predict("sharp", "coarser.zarr", code=1)
    assert "sharpens 16 × 16 nm by 2" in str(refused.exception)


def test_options_of_other_recipes_are_refused(folder, predict, tmp_path):
    refused = predict("plain", "v.zarr", "--output", "classes", code=1)
    assert "of a restore run wanted restored" in str(refused.exception)
    assert json.loads((folder / "plain" / "restoration.json").read_text()) == {
        "voxel_size_nm": list(SIZE)
    }

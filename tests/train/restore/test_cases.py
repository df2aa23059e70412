"""Slices that runs of restore are judged on, and the command that judges them."""

import json

import numpy as np
import pytest
from em_data import grey_range, new_store, open_volume
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.judge.truth import Protocol
from em_train.recipes import restore as recipe
from em_train.restore.cases import restorer, slices_of, spread
from em_train.restore.run import open_run
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

SIZE, SHAPE = (40.0, 8.0, 8.0), (12, 90, 101)


def write(path, voxels, size=SIZE, origin=(0.0, 0.0, 0.0)):
    with new_store(path) as store:
        image = store.add_image(voxels.shape, voxels.dtype, size, origin_nm=origin)
        image.write(Box((0, 0, 0), voxels.shape), voxels)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A smooth volume, a noisy scan of it, a coarse one, images; runs of three kinds."""
    path, rng = tmp_path_factory.mktemp("judged"), np.random.default_rng(0)
    clean = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (0, 3, 3))
    clean = (128 + 30 * clean / clean.std()).clip(0, 255)
    noisy = (clean + rng.normal(0, 15, SHAPE)).clip(0, 255)
    write(path / "clean.zarr", clean.astype(np.uint8))
    write(path / "noisy.zarr", noisy.astype(np.uint8))
    even = clean[:, :, :100].reshape(12, 45, 2, 50, 2).mean((2, 4))
    write(path / "coarse.zarr", even.astype(np.uint8), (40.0, 16.0, 16.0), (0.0, 4.0, 4.0))
    write(path / "even.zarr", clean[:, :, :100].astype(np.uint8))
    for name, source in (("images", clean), ("scans", noisy)):
        (path / name).mkdir()
        for z in range(6):
            Image.fromarray(source[z].astype(np.uint8)).save(path / name / f"{z}.png")
    own = {
        "denoise": {"task": "denoise", "slices": 3},
        "sharp": {"task": "super-resolution"},
        "images": {"task": "denoise", "volumes": [f"images:{path}/images"], "invert": True},
    }
    for name, data in own.items():
        settings = {
            "data": {
                **{"volumes": [str(path / "clean.zarr")], "patch_vx": 32, "batch_size": 2},
                **{"checked_crops": 2, **data},
                "damage": {"detector": 1.0, "detector_strength": [0.1, 0.1]},
            },
            "model": {"unet": {"channels": [4, 6]}},
            "run": {"steps": 2, "device": "cpu", "precision": "fp32"},
        }
        config = resolve(recipe.Config, [Layer("test", settings)])
        assert recipe.run(config, new_run(path / f"run-{name}", config, "restore"))
    return path


def slices(folder, run, volume, target=None, **protocol):
    path = folder / f"run-{run}"
    address = volume if ":" in volume else str(folder / volume)
    given = target if target is None or ":" in target else str(folder / target)
    return slices_of(open_run(path), path, address, given, Protocol(**protocol), "volume")


def test_copies_have_the_volume_as_truth_and_noise_of_their_own(folder):
    found = slices(folder, "denoise", "clean.zarr", fit_z=(0, 4), score_z=(8, 12))
    assert [case.where for case in found.score] == ["z 8", "z 9", "z 10", "z 11"]
    assert [case.where for case in found.choose] == ["z 0", "z 1", "z 2", "z 3"]
    assert found.pixel_nm == 8
    volume = open_volume(folder / "clean.zarr")
    unit = grey_range(volume).unit(volume[:, :, :], clip=False)
    for number, case in enumerate(found.score, 8):
        np.testing.assert_array_equal(case.truth, unit[number])
        assert case.degraded.shape == (3, 90, 101)
        noise, other = case.degraded[1] - case.truth, case.second[1] - case.truth
        assert noise.std() == pytest.approx(0.1, rel=0.1)
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.05
    again = slices(folder, "denoise", "clean.zarr", fit_z=(0, 4), score_z=(8, 12))
    np.testing.assert_array_equal(again.score[0].degraded, found.score[0].degraded)


def test_a_better_scan_is_the_truth_of_what_is_given(folder):
    found = slices(folder, "denoise", "noisy.zarr", "clean.zarr")
    clean, noisy = (open_volume(folder / f"{n}.zarr")[:, :, :] for n in ("clean", "noisy"))
    grey = grey_range(open_volume(folder / "noisy.zarr"))
    case = found.score[0]
    z = int(case.where[2:])
    np.testing.assert_array_equal(case.truth, grey.unit(clean[z], clip=False))
    np.testing.assert_array_equal(case.degraded[1], grey.unit(noisy[z], clip=False))
    assert case.second is None
    with pytest.raises(ValueError, match="voxels of 40 × 16 × 16 nm"):
        slices(folder, "denoise", "noisy.zarr", "coarse.zarr")


def test_super_resolution_is_judged_on_the_finer_grid(folder):
    stored = open_run(folder / "run-sharp")
    copies = slices(folder, "sharp", "even.zarr").score[0]
    assert copies.degraded.shape == (1, 45, 50) and copies.truth.shape == (90, 100)
    pair = slices(folder, "sharp", "coarse.zarr", "even.zarr").score[0]
    assert np.abs(pair.degraded - copies.degraded).max() < 0.02  # both are means of 2 × 2
    made = restorer(stored)(pair.degraded)
    assert made.shape == (90, 100)
    wanted = ndimage.zoom(pair.degraded[0], 2, order=1, grid_mode=True, mode="nearest")
    assert np.abs(made - wanted).mean() < 0.05  # two steps have learned next to nothing


def test_images_are_numbered_slices(folder):
    found = slices(folder, "images", f"images:{folder}/images")
    assert [case.where for case in found.score] == ["image 4", "image 5"]
    pair = slices(folder, "images", f"images:{folder}/scans", f"images:{folder}/images")
    assert pair.score[0].degraded.shape == (1, 90, 101) and pair.score[0].second is None


def test_slices_are_spread_over_their_range():
    assert spread((3, 5), 4) == [3, 4]
    assert spread((0, 100), 4) == [12, 37, 62, 87]


def test_the_command_prints_tables_and_writes_a_picture(folder, tmp_path):
    def call(*typed, code=0):
        told = CliRunner().invoke(app, ["evaluate", *map(str, typed)])
        assert told.exit_code == code, told.output + str(told.exception)
        return told

    run, out = folder / "run-denoise", tmp_path / "told.json"
    call(run, "--data", folder / "clean.zarr", "--no-baselines", "--json", out)
    assert (run / "images" / "evaluation.png").is_file()
    written = json.loads(out.read_text())
    rows = {row["method"]: row for row in written["rows"]}
    assert set(rows) == {"input", "run"} and rows["run"]["gap"] is not None
    assert written["protocol"]["task"] == "denoise"
    pair = (run, "--data", folder / "noisy.zarr", "--target", folder / "clean.zarr")
    call(*pair, "--no-baselines", "--json", out)
    assert json.loads(out.read_text())["rows"][1]["gap"] is None
    refused = call(run, "--data", folder / "clean.zarr", "--labels", "a=b", code=1)
    assert "leave --labels" in str(refused.exception)


def test_what_learned_from_noise_needs_a_target(folder):
    settings = {
        "data": {
            **{"volumes": [str(folder / "noisy.zarr")], "patch_vx": 32, "batch_size": 2},
            **{"task": "denoise", "learn_from": "noise"},
        },
        "model": {"unet": {"channels": [4, 6]}},
        "run": {"steps": 1, "device": "cpu"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(folder / "run-noise", config, "restore"))
    told = CliRunner().invoke(
        app, ["evaluate", str(folder / "run-noise"), "--data", str(folder / "noisy.zarr")]
    )
    assert told.exit_code == 1 and "name a better scan with --target" in str(told.exception)

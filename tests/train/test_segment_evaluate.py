import json

import numpy as np
import pytest
from em_data import new_store
from em_data.geometry import Box
from em_train.cli import app
from em_train.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import segment as recipe
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, and the volume that it was trained on."""
    path = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    shape, size = (8, 64, 64), (40.0, 8.0, 8.0)
    with new_store(path / "v.zarr") as store:
        image = store.add_image(shape, np.uint8, size)
        image.write(Box((0, 0, 0), shape), rng.integers(0, 255, shape).astype(np.uint8))
        mask = store.add_image(shape, np.uint8, size, label="mito")
        mask.write(Box((0, 0, 0), shape), (rng.random(shape) > 0.7).astype(np.uint8))
    settings = {
        "data": {
            "volumes": [str(path / "v.zarr")],
            "labels": ["mito"],
            "patch_vx": 32,
            "split": {"z": [4, 5]},
        },
        "model": {"unet": {"channels": [4, 6]}},
        "optim": {"steps": 2},
        "run": {"device": "cpu"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(path / "run", config, "segment"))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_scores_are_those_of_the_run_on_the_same_slices(run, tmp_path):
    told = invoke(
        *(run / "run", "--data", run / "v.zarr", "--score-z", "4:5"),
        *("--json", tmp_path / "s.json", "--picture", tmp_path / "worst.png"),
    )
    assert told.exit_code == 0 and "boundary_f1" in told.output
    found = json.loads((tmp_path / "s.json").read_text())
    own = json.loads((run / "run" / "scores.json").read_text())
    assert found["classes"] == own["classes"]
    assert found["protocol"]["slices"] == ["z 4"]
    assert (tmp_path / "worst.png").exists() and (tmp_path / "worst-best.png").exists()


def test_without_a_range_all_labelled_slices_are_scored(run, tmp_path):
    told = invoke(
        *(run / "run", "--data", run / "v.zarr", "--labels", "mito", "--json", tmp_path / "s.json"),
        *("--picture", tmp_path / "worst.png"),
    )
    assert told.exit_code == 0
    slices = json.loads((tmp_path / "s.json").read_text())["protocol"]["slices"]
    assert slices == [f"z {z}" for z in range(8)]


def test_what_does_not_fit_is_refused_by_name(run):
    for options, message in (
        (("--fit-z", "0:2"), "nothing to fit"),
        (("--score-z", "4:9"), "has slices 0:8"),
        (("--labels", "other=mito"), "knows mito, the labels are other"),
    ):
        with pytest.raises(ValueError, match=message):
            invoke(run / "run", "--data", run / "v.zarr", *options)
    (run / "run" / "classes.json").rename(run / "run" / "hidden")
    with pytest.raises(FileNotFoundError, match="finish the run first"):
        invoke(run / "run", "--data", run / "v.zarr")
    (run / "run" / "hidden").rename(run / "run" / "classes.json")

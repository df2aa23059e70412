"""What every recipe promises: interrupted and resumed is the same as left alone."""

import json

import numpy as np
import pytest
import torch
from em_data import NotFiniteError, open_volume
from em_train.catalogue import RECIPES
from em_train.engine import checkpoint
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run, resumed_run
from em_train.engine.stop import StopRequest

RUN = {
    **{"steps": 5, "accumulate": 2, "ema_decay_end": 1.0},
    **{"log_every": 1, "picture_every": 3, "checkpoint_every": 2, "device": "cpu"},
}
OPTIM = {"warmup_steps": 1}
# The least that each recipe trains with; a new recipe has its own here.
SMALL = {
    "dense-ssl": {
        "data": {
            "volumes": ["synthetic:shape=8x128x128,seed=1"],
            "batch_size": 2,
            "stack": {"size_vx": 61},
        },
        "model": {"encoder": {"classes": 8, "pools": []}, "predictor_width": 8},
        "loss": {"classes_at_least": 6},
    },
    "segment": {
        "data": {
            "volumes": ["synthetic:shape=10x80x80,seed=1"],
            "labels": ["membrane=classes@1", "mitochondria=classes@2"],
            "batch_size": 2,
            "patch_vx": 32,
            "depth_vx": 2,
            "samples_per_epoch": 8,
        },
        "model": {
            "unet": {"channels": [4, 6, 8]},
            "unet3d": {"channels": [3, 4], "kernels_z": [1, 3], "strides_z": [1]},
        },
    },
    "mae": {
        "data": {
            "volumes": ["synthetic:shape=24x64x64,seed=1"],
            "batch_size": 2,
            "cube": {"size_vx": [8, 32, 32]},
            "checked_cubes": 2,
            "samples_per_epoch": 8,
            "split": {"last_z": 0.3},
        },
        "model": {
            "encoder": {
                "width": 48,
                "depth": 2,
                "heads": 2,
                "patch_vx": [2, 8, 8],
                "drop_path": 0.2,
            },
            "decoder": {"width": 24, "depth": 1, "heads": 2},
        },
    },
    "restore": {
        "data": {
            "volumes": ["synthetic:shape=10x80x80,seed=1"],
            "batch_size": 2,
            "patch_vx": 32,
            "checked_crops": 2,
            "samples_per_epoch": 8,
        },
        "model": {
            "unet": {"channels": [4, 6, 8]},
            "discriminator": {"channels": 4, "layers": 1},
        },
        "loss": {"adversary": 0.01, "r1_every": 2},
    },
}


def test_every_recipe_is_tried():
    assert SMALL.keys() == RECIPES.keys()


def measured(path):
    """The rows of a run without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if k != "waiting" and not k.endswith("_per_s")}
        for row in rows
    ]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
@pytest.mark.parametrize("command", sorted(RECIPES))
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, command, schedule):
    recipe = RECIPES[command].load()
    engine = {"optim": OPTIM | {"schedule": schedule, "plateau_patience": 0}, "run": RUN}
    config = resolve(recipe.Config, [Layer("small", SMALL[command]), Layer("engine", engine)])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert recipe.run(config, new_run(whole, config, command))

    asked = []
    monkeypatch.setattr(StopRequest, "agreed", lambda stop: len(asked) == 2 or asked.append(0))
    assert not recipe.run(config, new_run(broken, config, command))
    monkeypatch.undo()
    assert checkpoint.load(broken / "checkpoints")["step"] == 3  # between two checkpoints
    assert recipe.run(config, resumed_run(broken, config, command), resume=True)

    assert measured(broken) == measured(whole)
    assert [row["step"] for row in measured(whole)] == [1, 2, 3, 4, 5]
    states = [checkpoint.load(run / "checkpoints") for run in (whole, broken)]
    assert equal(*states)
    weights = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert weights
    for path in weights:
        assert (whole / path).read_bytes() == (broken / path).read_bytes()


@pytest.mark.parametrize("command", sorted(RECIPES))
def test_a_new_run_starts_from_the_weights_of_another_and_nothing_else(tmp_path, command):
    recipe = RECIPES[command].load()
    first = {"optim": OPTIM, "run": RUN | {"steps": 2}}
    config = resolve(recipe.Config, [Layer("small", SMALL[command]), Layer("engine", first)])
    assert recipe.run(config, new_run(tmp_path / "a", config, command))
    run = RUN | {"steps": 1, "init": str(tmp_path / "a")}
    still = {"optim": OPTIM | {"lr": 1e-30}, "run": run}
    config = resolve(recipe.Config, [Layer("small", SMALL[command]), Layer("engine", still)])
    assert recipe.run(config, new_run(tmp_path / "b", config, command))
    states = [checkpoint.load(tmp_path / name / "checkpoints") for name in "ab"]
    average, fresh = states[0]["average"], states[1]
    trained = {name for name, _ in recipe_parameters(recipe, config)}
    for name in trained:
        torch.testing.assert_close(fresh["networks"][name], average[f"module.{name}"])
    assert fresh["step"] == 1 and len(measured(tmp_path / "b")) == 1


def recipe_parameters(recipe, config):
    """Names of what a recipe trains."""
    return recipe.rehearse(config, torch.device("cpu")).networks.named_parameters()


@pytest.fixture
def damaged(tmp_path):
    """A function that gives the configuration of a recipe on a volume with a corner of NaN."""

    def settings(command, **changed):
        synthetic = open_volume(SMALL[command]["data"]["volumes"][0])
        voxels = synthetic[:, :, :].astype(np.float32)
        voxels[:3, :9, :9] = np.nan
        np.save(tmp_path / "raw.npy", voxels)
        np.save(tmp_path / "classes.npy", synthetic.labels("classes")[:, :, :])
        data = {"volumes": [str(tmp_path / "raw.npy")], "memory_gib": 1, **changed}
        if command == "segment":
            names = {"membrane": 1, "mitochondria": 2}
            path = tmp_path / "classes.npy"
            data["labels"] = [f"{name}={path}@{value}" for name, value in names.items()]
        engine = {"optim": OPTIM, "run": RUN, "data": data}
        recipe = RECIPES[command].load()
        layers = [Layer("small", SMALL[command]), Layer("damaged", engine)]
        return recipe, resolve(recipe.Config, layers)

    return settings


@pytest.mark.parametrize("command", sorted(RECIPES))
def test_voxels_that_are_no_numbers_are_refused_or_masked(tmp_path, damaged, command, capsys):
    recipe, config = damaged(command)
    place = r"raw\.npy: 243 of .* NaN or infinite, the first at \(0, 0, 0\); .*data\.nan=mask"
    with pytest.raises(NotFiniteError, match=place):
        recipe.run(config, new_run(tmp_path / "refused", config, command))
    recipe, config = damaged(command, nan="mask")
    assert recipe.run(config, new_run(tmp_path / "masked", config, command))
    assert "of the voxels are NaN or infinite; no sample holds one" in capsys.readouterr().err
    rows = measured(tmp_path / "masked")
    assert all(row["skipped"] == 0 for row in rows if "skipped" in row)
    assert all(np.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("command", sorted(RECIPES))
def test_weights_that_are_no_numbers_are_never_written(tmp_path, command):
    recipe = RECIPES[command].load()
    engine = {"optim": OPTIM | {"lr": 1e30, "warmup_steps": 0}, "run": RUN}
    config = resolve(recipe.Config, [Layer("small", SMALL[command]), Layer("engine", engine)])
    with pytest.raises(FloatingPointError, match=r"lower optim\.lr|look at its weights"):
        recipe.run(config, new_run(tmp_path / "run", config, command))
    assert not list((tmp_path / "run").rglob("*.safetensors"))

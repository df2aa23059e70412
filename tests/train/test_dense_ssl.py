"""The recipe: it runs, it resumes bit for bit, it refuses what cannot run."""

import dataclasses
import json
import math
import os
import signal

import em_models
import numpy as np
import pytest
import torch
from em_data import BlockSampler, augment, open_volume
from em_train import checkpoint
from em_train import config as configuration
from em_train.config import Layer, resolve
from em_train.dense_report import hard_codes
from em_train.errors import ConfigError
from em_train.recipes import dense_ssl as recipe
from em_train.run_folder import new_run, resumed_run

SMALL = {
    "data": {
        "volumes": ["synthetic:shape=8x96x96,seed=1"],
        "batch_size": 2,
        "stack": {"size_vx": 65},
    },
    "model": {"encoder": {"classes": 10}, "predictor_width": 8},
    "loss": {"classes_at_least": 8},
    "optim": {"steps": 4, "warmup_steps": 1},
    "run": {"log_every": 1, "picture_every": 2, "checkpoint_every": 2, "device": "cpu"},
}


def small(**groups):
    return resolve(recipe.Config, [Layer("small", SMALL), Layer("test", groups)])


def start(path, config):
    return recipe.run(config, new_run(path, config, "dense-ssl"))


def measured(path):
    """The rows of a run without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "slices_per_s"} for row in rows]


def test_a_run_leaves_everything_a_person_looks_at(tmp_path):
    path = tmp_path / "run"
    assert start(path, small())
    rows = measured(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for name in ("step-000002.png", "step-000004.png", "classes.png"):
        assert (path / "images" / name).stat().st_size > 1000
    report = (path / "report.html").read_text()
    for expected in (
        "NMI",
        "data:image/png;base64,",
        "<polyline",
        "optim.lr",
        "synthetic:shape=8x96",
    ):
        assert expected in report
    assert (
        resolve(recipe.Config, [configuration.file_layer(path / "config.json", "dense-ssl")])
        == small()
    )
    encoder = em_models.load(path / "weights" / "encoder")
    state = checkpoint.load(path / "checkpoints")
    key = "module.encoder.prototypes"
    torch.testing.assert_close(encoder.prototypes.detach(), state["average"][key], rtol=0, atol=0)
    assert not torch.equal(state["average"][key], state["networks"]["encoder.prototypes"])


@pytest.mark.parametrize("target", ["online", "ema"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, target, monkeypatch):
    config = small(loss={"target": target})
    assert start(tmp_path / "whole", config)

    update, seen = recipe.AveragedModel.update_parameters, []

    def interrupt(self, model):
        update(self, model)
        seen.append(0)
        if len(seen) == 3:  # between two checkpoints
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe.AveragedModel, "update_parameters", interrupt)
    broken = tmp_path / "broken"
    assert not start(broken, config)
    monkeypatch.undo()
    assert checkpoint.load(broken / "checkpoints")["step"] == 3
    assert recipe.run(config, resumed_run(broken, config, "dense-ssl"), resume=True)

    assert measured(broken) == measured(tmp_path / "whole")
    a, b = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "broken"))
    for part in ("networks", "average"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part]), part
    for name in ("classes.png", "step-000004.png"):
        whole, resumed = (tmp_path / n / "images" / name for n in ("whole", "broken"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_a_kill_after_the_checkpoint_loses_nothing_and_repeats_no_row(tmp_path, monkeypatch):
    config = small()
    path = tmp_path / "run"
    update, seen = recipe.AveragedModel.update_parameters, []

    def die(self, model):
        seen.append(0)
        if len(seen) == 4:
            raise MemoryError("as if killed")
        update(self, model)

    monkeypatch.setattr(recipe.AveragedModel, "update_parameters", die)
    with pytest.raises(MemoryError):
        start(path, config)
    monkeypatch.undo()
    assert [row["step"] for row in measured(path)] == [1, 2, 3]  # the checkpoint is of step 2
    assert recipe.run(config, resumed_run(path, config, "dense-ssl"), resume=True)
    assert [row["step"] for row in measured(path)] == [1, 2, 3, 4]


def test_loss_is_made_of_its_parts_and_learns(tmp_path):
    config = small(optim={"steps": 30, "warmup_steps": 3}, run={"picture_every": 100})
    start(tmp_path / "run", config)
    rows = measured(tmp_path / "run")
    for row in rows:
        floor = max(0, math.log(8) - math.log(row["mean_classes"]))
        expected = row["pred"] + 5 * floor + 0.1 * row["entropy"]
        assert row["loss"] == pytest.approx(expected, rel=1e-4)
        assert row["information"] == pytest.approx(
            math.log(row["mean_classes"]) - row["pred"], abs=1e-4
        )
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last < first - 0.05


def test_target_codes_are_turned_back_onto_their_neighbours():
    """With an encoder that keeps symmetry, turning the target changes nothing."""
    encoder = em_models.DenseEncoder(em_models.DenseEncoderConfig(classes=5)).eval()
    for convolution in encoder.convolutions:  # kernels that look the same from all eight sides
        kernel = convolution.weight.data
        convolution.weight.data = torch.stack(
            [augment.transform(kernel, [k] * len(kernel)) for k in range(8)]
        ).mean(0)
    image = torch.rand(1, 1, 81, 81)
    plain = encoder(image).logits
    for k in range(8):
        turned = encoder(augment.transform(image, [k])).logits
        torch.testing.assert_close(augment.transform_back(turned, [k]), plain)


def test_hard_codes_cover_the_slice_without_its_border():
    encoder = em_models.DenseEncoder(em_models.DenseEncoderConfig(classes=5)).eval()
    slices = open_volume("synthetic:shape=3x64x70")[0:3, 0:64, 0:70]
    codes = hard_codes(encoder, slices)
    margin = encoder.config.margin
    assert codes.shape == (3, 64 - 2 * margin, 70 - 2 * margin)
    alone = hard_codes(encoder, slices[1:2, :60])
    np.testing.assert_array_equal(alone[0], codes[1, : 60 - 2 * margin])


def test_a_volume_larger_than_the_memory_is_read_by_blocks(tmp_path):
    changes = {"volumes": ["synthetic:shape=16x800x800,seed=1"], "memory_gib": 9 / 1024}
    config = small(data=changes, optim={"steps": 2})
    (volume,) = recipe.open_volumes(config.data)
    assert isinstance(recipe.draw_samples([volume], config), BlockSampler)
    assert start(tmp_path / "run", config)
    assert [row["step"] for row in measured(tmp_path / "run")] == [1, 2]
    tiny = small(data=changes | {"memory_gib": 1 / 1024})
    with pytest.raises(ValueError, match="holds no block"):
        recipe.check(tiny)


def test_what_cannot_run_is_refused_before_anything_is_written():
    with pytest.raises(ConfigError, match="take 65 or 69"):
        small(data={"stack": {"size_vx": 66}})
    with pytest.raises(ConfigError, match="classes_at_least"):
        small(loss={"classes_at_least": 11})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        recipe.check(small(data={"volumes": ["nowhere.zarr"]}))
    with pytest.raises(ValueError, match="exceeds volume"):
        recipe.check(small(data={"volumes": ["synthetic:shape=4x96x96"]}))
    with pytest.raises(ValueError, match="--data"):
        recipe.check(small(data={"volumes": []}))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    real = recipe.cross_entropy
    monkeypatch.setattr(recipe, "cross_entropy", lambda *args: real(*args) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 1 is nan.*samples 0 to 1 of epoch 0"):
        start(tmp_path / "run", small())


def test_every_field_is_explained():
    missing = [key.name for key in configuration.keys(recipe.Config) if not key.meaning]
    assert not missing
    assert dataclasses.is_dataclass(recipe.Config)

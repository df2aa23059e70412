"""The recipe: it runs, leaves what a person looks at, and does as its configuration says."""

import json
import math

import em_models
import numpy as np
import pytest
import torch
from em_train.cli import app
from em_train.engine import checkpoint
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import mae as recipe
from typer.testing import CliRunner

SMALL = {
    "data": {
        "volumes": ["synthetic:shape=24x64x64,seed=1"],
        "batch_size": 2,
        "cube": {"size_vx": [8, 32, 32]},
        "checked_cubes": 2,
        "samples_per_epoch": 4,
        "split": {"last_z": 0.3},
    },
    "model": {
        "encoder": {"width": 48, "depth": 2, "heads": 2, "patch_vx": [2, 8, 8]},
        "decoder": {"width": 24, "depth": 1, "heads": 2},
    },
    "optim": {"warmup_steps": 1},
    "run": {"steps": 4, "log_every": 1, "picture_every": 2, "checkpoint_every": 2, "device": "cpu"},
}


def small(**groups):
    return resolve(recipe.Config, [Layer("small", SMALL), Layer("test", groups)])


def start(path, config):
    recipe.check(config)
    return recipe.run(config, new_run(path, config, "mae"))


def test_a_run_leaves_everything_a_person_looks_at(tmp_path):
    path = tmp_path / "run"
    assert start(path, small())
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["step"] for row in rows if "held_out" in row] == [2, 4]
    for name in ("step-000002.png", "filled-in.png", "spectrum.png"):
        assert (path / "images" / name).stat().st_size > 1000
    figures = json.loads((path / "figures.json").read_text())
    assert figures["error"] == pytest.approx(rows[-1]["held_out"])
    assert figures["trilinear"] > 0 and len(figures["spectrum"]) > 3
    report = (path / "report.html").read_text()
    for expected in ("in-painting", "data:image/png;base64,", "<polyline", "optim.lr"):
        assert expected in report
    whole = em_models.load(path / "weights" / "mae")
    encoder = em_models.load(path / "weights" / "encoder")
    assert encoder.config.token_nm == 64  # 8 voxels of 8 nm
    state = checkpoint.load(path / "checkpoints")
    key = "module.mae.encoder.embed.weight"
    assert torch.equal(encoder.embed.weight, state["average"][key])
    assert torch.equal(whole.encoder.embed.weight, encoder.embed.weight)


def test_the_loss_is_made_of_its_parts_and_recomputing_changes_nothing(tmp_path):
    plain = small(loss={"gradient_weight": 0.5}, run={"picture_every": 100})
    start(tmp_path / "a", plain)
    again = small(
        loss={"gradient_weight": 0.5}, run={"picture_every": 100}, model={"recompute": True}
    )
    start(tmp_path / "b", again)
    a, b = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in "ab"
    )
    for row, other in zip(a, b, strict=True):
        assert row["loss"] == pytest.approx(row["error"] + 0.5 * row["gradient"], rel=1e-5)
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_betas_and_rehearsal():
    config = small()
    networks, loader, _, loss_of = recipe.rehearse(config, torch.device("cpu"))
    batch = next(iter(loader.batches(0, 1)))
    loss = loss_of(networks, batch)
    terms = recipe.losses(networks, batch, config)
    assert torch.equal(loss, terms["loss"]) and "gradient" not in terms
    wrapped = recipe.rehearse(small(model={"recompute": True}), torch.device("cpu"))[0]["mae"]
    assert all("forward" in vars(block) for block in (*wrapped.encoder.blocks, *wrapped.blocks))
    # Masks depend on the samples, not on how they are spread over batches.
    model = networks["mae"]
    voxels = recipe.voxels_of(batch, config.data)
    first = model.draw(voxels, batch.keys, seed=0).hidden
    second = model.draw(voxels, [batch.keys[1], batch.keys[0]], seed=0).hidden
    assert torch.equal(first, second.flip(0))


def test_the_command_and_its_probe(tmp_path):
    run, volume = tmp_path / "run", tmp_path / "tissue.zarr"
    settings = [f"--set=data.volumes=['{volume}']"]
    for group, values in SMALL.items():
        for key, value in values.items():
            leaves = value.items() if isinstance(value, dict) else [(None, value)]
            for leaf, one in leaves:
                if (group, key) != ("data", "volumes"):
                    name = f"{group}.{key}" + (f".{leaf}" if leaf else "")
                    settings.append(f"--set={name}={one}")
    runner = CliRunner()

    def call(*arguments):
        result = runner.invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    call("synth", volume, "--shape", "24,64,64", "--voxel-nm", "17.6,8,8")
    call("mae", "--out", run, *settings)
    table = tmp_path / "probe.json"
    printed = call(
        *("probe", run, "--data", volume, "--fit-z", "0:12", "--score-z", "16:24"),
        *("--layers", "0,-1", "--label", "0.3", "--seeds", "2", "--json", table),
    )
    assert "position only" in printed and "run, layer -1" in printed
    found = json.loads(table.read_text())
    assert len(found["rows"]) == 2 * 7 and found["conditions"]["patch_vx"] == [2, 8, 8]
    assert all(len(row["mean_dice"]) == 2 for row in found["rows"])


def test_what_cannot_be_is_refused_before_anything_is_written():
    from em_train.engine.errors import ConfigError

    with pytest.raises(ConfigError, match="wanted multiples of the patch"):
        small(data={"cube": {"size_vx": [7, 32, 32]}})
    with pytest.raises(ValueError, match="exceeds volume"):
        recipe.check(small(data={"cube": {"size_vx": [40, 32, 32]}}))
    with pytest.raises(ValueError, match="nothing is held out"):
        recipe.check(small(data={"split": {"last_z": 0}}))


def test_a_held_out_part_that_is_blank_is_refused(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (24, 64, 64)).astype(np.uint8)
    data = {"volumes": [str(tmp_path / "v.npy")]}
    np.save(tmp_path / "v.npy", voxels)
    recipe.check(small(data=data))
    voxels[12:] = 7
    np.save(tmp_path / "v.npy", voxels)
    with pytest.raises(ValueError, match="one value all over.* with data.split"):
        recipe.check(small(data=data))

"""The recipe: it repairs, its two players resume bit for bit, it refuses what cannot run."""

import json
from pathlib import Path

import em_models
import numpy as np
import pytest
import torch
from em_data import new_store
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import restore as recipe
from em_train.restore.data import make_pair
from typer.testing import CliRunner

SIZE = (40.0, 8.0, 8.0)
SMALL = {
    "data": {
        "task": "denoise",
        "batch_size": 4,
        "patch_vx": 32,
        "checked_crops": 6,
        "samples_per_epoch": 60,
        "damage": {"detector": 1.0, "detector_strength": [0.2, 0.2]},
    },
    "model": {
        "unet": {"channels": [8, 12]},
        "discriminator": {"channels": 4, "layers": 1},
    },
    "optim": {"warmup_steps": 1},
    "run": {
        **{"steps": 3, "log_every": 1, "picture_every": 2, "checkpoint_every": 2, "device": "cpu"},
        "ema_decay": 0.8,
    },
}


def small(*, volumes, **groups):
    layers = [Layer("small", SMALL), Layer("volumes", {"data": {"volumes": [str(volumes)]}})]
    return resolve(recipe.Config, [*layers, Layer("test", groups)])


def start(path, config):
    return recipe.run(config, new_run(path, config, "restore"))


def rows_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def write(path, voxels, size=SIZE):
    with new_store(path) as store:
        store.add_image(voxels.shape, voxels.dtype, size).write(
            Box((0, 0, 0), voxels.shape), voxels
        )
    return path


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """A folder with smooth discs, and two scans of them with noise of their own."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y, x = np.indices((96, 96))
    clean = np.full((12, 96, 96), 60.0)
    for z in range(12):
        for cy, cx in rng.integers(0, 96, (12, 2)):
            clean[z] += 60 / (1 + np.exp((np.hypot(y - cy, x - cx) - 10) / 1.5))
    write(folder / "clean.zarr", clean.clip(0, 255).astype(np.uint8))
    for name in ("one", "two"):
        noisy = clean + rng.normal(0, 25, clean.shape)
        write(folder / f"{name}.zarr", noisy.clip(0, 255).astype(np.uint8))
    return folder


@pytest.mark.parametrize("adversary", [0.0, 0.01])
def test_it_learns_to_remove_noise(tmp_path, discs, adversary):
    run = {"steps": 60, "log_every": 20}
    config = small(volumes=discs / "clean.zarr", run=run, loss={"adversary": adversary})
    assert start(tmp_path / "run", config)
    last = rows_of(tmp_path / "run")[-1]
    assert last["held_out_psnr"] > last["held_out_psnr_before"] + 5
    assert last["skipped"] == 0
    assert ("judge" in last) == bool(adversary)
    named = {"images/restored.png", "images/step-000002.png", "report.html", "restoration.json"}
    assert all((tmp_path / "run" / name).is_file() for name in named)
    network = em_models.load(tmp_path / "run" / "weights" / "network")
    assert network.config.classes == 1
    assert (tmp_path / "run" / "weights" / "discriminator").exists() == bool(adversary)


def test_it_learns_from_the_noisy_volume_alone(tmp_path, discs):
    noise = {"learn_from": "noise"}
    config = small(volumes=discs / "one.zarr", data=noise, run={"steps": 80, "log_every": 20})
    assert start(tmp_path / "run", config)
    out = tmp_path / "out.zarr"
    told = CliRunner().invoke(
        app,
        ["predict", str(tmp_path / "run"), "--data", f"{discs}/one.zarr", "--out", str(out)],
    )
    assert told.exit_code == 0, told.output
    from em_data import open_volume

    clean, noisy, found = (
        open_volume(path)[:, :, :].astype(float)
        for path in (discs / "clean.zarr", discs / "one.zarr", out)
    )
    # The network never saw clean voxels.
    assert np.square(found - clean)[-1:].mean() < 0.5 * np.square(noisy - clean)[-1:].mean()


def test_a_target_and_a_neighbour_are_learned_from(tmp_path, discs):
    pairs = {"target": [str(discs / "clean.zarr")], "learn_from": "target"}
    config = small(volumes=discs / "one.zarr", data=pairs, run={"steps": 40, "log_every": 20})
    assert start(tmp_path / "run", config)
    last = rows_of(tmp_path / "run")[-1]
    assert last["held_out_psnr"] > last["held_out_psnr_before"] + 3
    neighbours = {"learn_from": "neighbours"}
    assert start(tmp_path / "other", small(volumes=discs / "one.zarr", data=neighbours))


def test_where_a_target_is_turns_with_it(tmp_path, discs):
    """A target of a part of the volume: outside of it nothing is asked for."""
    part = np.random.default_rng(1).integers(1, 255, (12, 96, 40)).astype(np.uint8)
    write(tmp_path / "part.zarr", part)
    pairs = {"target": [str(tmp_path / "part.zarr")], "learn_from": "target"}
    config = small(volumes=discs / "one.zarr", data=pairs | {"batch_size": 16})
    loader = recipe.rehearse(config, torch.device("cpu")).loader
    partly = 0
    for batch in loader.batches(0, 3):
        pair = recipe.pair_of(batch, config)
        low = batch.in_range(torch.zeros_like(batch.labels[:, 0])).expand_as(pair.truth)
        torch.testing.assert_close(pair.truth[~pair.where], low[~pair.where])  # a 0 is read there
        assert (pair.truth != low)[pair.where].all()
        partly += int((~pair.where).any())
    assert partly


def test_slices_are_shown_as_channels(tmp_path, discs):
    assert start(tmp_path / "run", small(volumes=discs / "clean.zarr", data={"slices": 3}))
    assert em_models.load(tmp_path / "run" / "weights" / "network").config.slices == 3


def test_the_discriminator_does_not_learn_while_it_judges(discs):
    config = small(volumes=discs / "clean.zarr", loss={"adversary": 1.0})
    rehearsal = recipe.rehearse(config, torch.device("cpu"))
    batch = next(iter(rehearsal.loader.batches(0, 1)))
    networks = recipe.make_networks(config.model, config.data)
    judges = recipe.make_judges(config.model, config.data, config.loss)
    kept = {name: value.clone() for name, value in judges.state_dict().items()}
    terms, found = recipe.repairing(networks, judges, recipe.pair_of(batch, config), batch, config)
    terms["loss"].backward()
    assert all(torch.equal(value, kept[name]) for name, value in judges.state_dict().items())
    assert all(p.grad is None for p in judges.parameters())
    assert any(p.grad.abs().sum() > 0 for p in networks.parameters())
    without = found.detach()
    pair = recipe.pair_of(batch, config)
    verdict = recipe.judging(judges, pair, without, batch, config, 1)
    verdict["judge_loss"].backward()
    assert all(p.grad is not None for p in judges.parameters())


def test_a_step_that_is_not_finite_leaves_both_players_as_they_were(tmp_path, discs, monkeypatch):
    config = small(volumes=discs / "clean.zarr", loss={"adversary": 0.01}, run={"steps": 4})
    pair_of = recipe.pair_of

    def poisoned(batch, config):
        pair = pair_of(batch, config)
        bad = pair.shown * torch.nan if batch.keys[0].number == 4 else pair.shown  # the second step
        return pair._replace(shown=bad)

    monkeypatch.setattr(recipe, "pair_of", poisoned)
    assert start(tmp_path / "run", config)
    rows = rows_of(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0, 1, 1, 1]
    assert [row["judge_skipped"] for row in rows] == [0, 1, 1, 1]
    assert np.isfinite(rows[-1]["loss"]) and np.isfinite(rows[-1]["judge"])


def test_what_cannot_be_learned_is_refused(tmp_path, discs):
    clean = discs / "clean.zarr"
    with pytest.raises(ValueError, match=r"patch_vx is 31; wanted a multiple of 2"):
        small(volumes=clean, data={"patch_vx": 31})
    with pytest.raises(ValueError, match="no clean truth to show a discriminator"):
        small(volumes=clean, data={"learn_from": "noise"}, loss={"adversary": 0.1})
    with pytest.raises(ValueError, match="learns to denoise, and data.task is background"):
        small(volumes=clean, data={"learn_from": "noise", "task": "background"})
    with pytest.raises(ValueError, match="names 2 volumes for 1"):
        small(volumes=clean, data={"learn_from": "target", "target": ["a", "b"]})
    with pytest.raises(ValueError, match="nothing is held out"):
        recipe.check(small(volumes=clean, data={"split": {"last_z": 0.0}}))
    flat = write(tmp_path / "flat.zarr", np.full((12, 96, 96), 7, np.uint8))
    pairs = {"learn_from": "target", "target": [str(flat)]}
    with pytest.raises(ValueError, match="grey value 7 all over"):
        recipe.check(small(volumes=clean, data=pairs))
    other = write(tmp_path / "other.zarr", np.zeros((12, 96, 96), np.uint8), (40.0, 16.0, 16.0))
    pairs = {"learn_from": "target", "target": [str(other)]}
    with pytest.raises(ValueError, match="target .* have voxels of 40 × 16 × 16 nm"):
        recipe.check(small(volumes=clean, data=pairs))
    assert not (tmp_path / "run").exists()


def test_pairs_depend_on_the_keys_of_the_samples_alone(discs):
    config = small(volumes=discs / "clean.zarr", data={"invert": True})
    loader = recipe.rehearse(config, torch.device("cpu")).loader
    batch = next(iter(loader.batches(0, 1)))
    whole = make_pair(batch, config.data, seed=3)
    assert not torch.equal(whole.shown, whole.truth)
    again = make_pair(batch, config.data, seed=3)
    torch.testing.assert_close(whole, again, rtol=0, atol=0)
    copy = make_pair(batch, config.data, seed=3, copy=1)
    assert torch.equal(whole.truth, copy.truth) and not torch.equal(whole.shown, copy.shown)
    other = make_pair(batch, config.data, seed=4)
    assert not torch.equal(whole.shown, other.shown)


def test_the_command_takes_a_task_and_a_target(tmp_path, discs):
    runner = CliRunner()
    typed = ["restore", "--data", f"{discs}/one.zarr", "--target", f"{discs}/clean.zarr"]
    shown = runner.invoke(app, [*typed, "--task", "denoise", "--show-config"])
    assert shown.exit_code == 0, shown.output
    plain = "".join(shown.output.split())
    assert 'data.task"denoise"' in plain.replace("=", "") or "denoise" in plain
    both = runner.invoke(app, [*typed, "--learn-from", "noise", "--out", str(tmp_path / "x")])
    assert both.exit_code == 1 and not (tmp_path / "x").exists()


def test_a_run_starts_any_task_from_another(tmp_path, discs):
    clean = discs / "clean.zarr"
    first = small(volumes=clean, loss={"adversary": 0.01})
    assert start(tmp_path / "first", first)
    second = small(
        volumes=clean,
        data={"task": "super-resolution", "damage": None},
        run={"init": str(tmp_path / "first"), "steps": 1},
        optim={"lr": 1e-30},
    )
    assert start(tmp_path / "second", second)
    weights = [em_models.load(tmp_path / n / "weights" / "network") for n in ("first", "second")]
    parameters = zip(*(network.parameters() for network in weights), strict=True)
    assert all(torch.allclose(a, b) for a, b in parameters)
    assert Path(tmp_path / "second" / "report.html").is_file()


def test_it_starts_from_the_same_network_of_a_restore_run_alone(tmp_path, discs):
    def told(init, *more):
        typed = ["restore", "--data", str(discs / "clean.zarr"), "--init", str(init)]
        more = [word for setting in more for word in ("--set", setting)]
        found = CliRunner().invoke(app, [*typed, *more, "--out", str(tmp_path / "new")])
        assert found.exit_code == 1 and not (tmp_path / "new").exists()
        assert "\n" not in str(found.exception)
        return str(found.exception)

    init = tmp_path / "first"
    new_run(init, small(volumes=discs / "clean.zarr"), "restore").close()  # of 8 and 12 channels
    patch = "data.patch_vx=32"
    said = told(init, patch, "model.kind=hrnet")
    assert "first holds a network of kind unet, and model.kind is hrnet" in said
    assert "channels: (8, 12) ≠ (16, 32, 64, 128)" in told(init, patch)
    said = told(init, patch, "model.unet.channels=[8,12]", "data.slices=3")
    assert "slices: 1 ≠ 3" in said and "channels" not in said
    assert "no checkpoint in" in told(init, patch, "model.unet.channels=[8,12]")
    tree = json.loads((init / "config.json").read_text())
    (init / "config.json").write_text(json.dumps(tree | {"command": "segment"}))
    assert "first is a run of segment, and emtrain restore starts from" in told(init, patch)

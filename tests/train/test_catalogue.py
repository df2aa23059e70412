"""The table of recipes: what is in it works, and a recipe needs nothing but its line."""

import importlib
import json
import sys
from dataclasses import dataclass, field
from itertools import repeat
from types import ModuleType, SimpleNamespace

import pytest
import torch
from em_train import catalogue
from em_train.catalogue import RECIPES, Entry
from em_train.cli import app
from em_train.commands import learn
from em_train.engine import optim, precision
from em_train.engine.errors import RunFolderError
from em_train.engine.optim import OptimConfig
from em_train.engine.rehearsal import Rehearsal
from em_train.engine.run_config import RunConfig
from em_train.engine.states import States
from em_train.engine.stop import StopRequest
from em_train.engine.update import Update
from torch import nn
from typer.testing import CliRunner

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A toy with two players."""

    first: OptimConfig = field(default_factory=OptimConfig)
    second: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.5, 0.9)))
    run: RunConfig = field(default_factory=lambda: RunConfig(steps=6))


def players(config):
    torch.manual_seed(config.run.seed)
    networks = nn.ModuleDict({"first": nn.Linear(3, 1), "second": nn.Linear(3, 1)})
    updates = {}
    for name, network in networks.items():
        own = getattr(config, name)
        scaler = precision.grad_scaler("fp32", CPU)
        optimiser = optim.adamw(network, own)
        updates[name] = Update(network, optimiser, scaler, clip_norm=own.clip_norm, run=config.run)
        updates[f"{name} optimiser"] = optimiser
    return networks, updates


def step(networks, updates, images):
    losses = {name: network(images).square().mean() for name, network in networks.items()}
    for name, loss in losses.items():
        updates[name](loss)
    return sum(loss.item() for loss in losses.values())


def run(config, folder, *, resume=False):
    networks, updates = players(config)
    states = States(folder, config.run, "toy", networks=networks, **updates)
    with StopRequest() as stop:
        for number in range(states.begin(resume=resume) + 1, config.run.steps + 1):
            loss = step(networks, updates, torch.full((2, 3), float(number)))
            folder.record({"step": number, "loss": loss})
            states.save(number)
            if stop.agreed():
                return False
    return True


def rehearse(config, device):
    networks, updates = players(config)
    batch = SimpleNamespace(raw=torch.ones(2, 3))
    loader = SimpleNamespace(batches=lambda start, stop: repeat(batch))
    return Rehearsal(networks, loader, lambda one: step(networks, updates, one.raw), None)


@pytest.fixture
def toy(monkeypatch):
    """A recipe that no file but this one knows, with its line in the table."""
    module = ModuleType("toy_recipe")
    for name, value in {"Config": Config, "check": print, "run": run, "rehearse": rehearse}.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "toy_recipe", module)
    entry = Entry(command="toy", recipe="toy_recipe", help="Learn nothing.")
    monkeypatch.setitem(RECIPES, "toy", entry)
    learn.add_command(entry)
    yield
    app.registered_commands.pop()


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def losses(path):
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_line_in_the_table_is_all_that_a_recipe_needs(toy, tmp_path, monkeypatch):
    assert "Learn nothing." in invoke("toy", "--help").output
    assert "second.betas" in invoke("toy", "--show-config").output
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert invoke("toy", "--out", whole).exit_code == 0
    with monkeypatch.context() as stopped:
        stopped.setattr(StopRequest, "agreed", lambda _: True)
        assert invoke("toy", "--out", broken).exit_code == 75
    assert len(losses(broken)) == 1
    assert invoke("toy", "--out", broken, "--resume").exit_code == 0
    assert losses(broken) == losses(whole) and len(losses(whole)) == 6
    measured = invoke("bench-train", "toy", "--steps", 1, "--rounds", 1, "--json", tmp_path / "a")
    assert measured.exit_code == 0 and "samples/s" in measured.output
    with pytest.raises(ValueError, match="run of toy; this works for dense-ssl, segment, mae"):
        invoke("predict", whole, "--data", "synthetic:", "--out", tmp_path / "o.zarr")


@pytest.mark.parametrize("command", sorted(RECIPES))
def test_what_the_table_names_is_there(command):
    entry = RECIPES[command]
    recipe = entry.load()
    assert all(hasattr(recipe, name) for name in ("Config", "check", "run", "rehearse"))
    assert isinstance(recipe.Config().run, RunConfig)
    uses = {"predict": "plan", "evaluate": "evaluate", "features": "open_run"}
    for use, function in (*uses.items(), ("prove", "prove_stored_run")):
        if name := getattr(entry, use):
            assert callable(getattr(importlib.import_module(name), function))
    assert bool(entry.outputs) == bool(entry.predict)
    assert not entry.evaluate or importlib.import_module(entry.evaluate).OPTIONS


def test_a_run_of_an_unknown_recipe_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"command": "other"}')
    with pytest.raises(ValueError, match="run of other, which this version does not know"):
        catalogue.entry_of(tmp_path)
    with pytest.raises(ValueError, match=r"holds no run.*give a folder that emtrain made"):
        catalogue.entry_of(tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["steps", "accumulate", "ema_decay", "seed"])
def test_what_decides_the_result_stays_when_a_run_is_resumed(toy, tmp_path, key):
    run, other = tmp_path / "run", {"ema_decay": 0.5}.get(key, 3)
    assert invoke("toy", "--out", run).exit_code == 0
    with pytest.raises(RunFolderError, match=rf"run\.{key}"):
        invoke("toy", "--out", run, "--resume", "--set", f"run.{key}={other}")
    assert invoke("toy", "--out", run, "--resume", "--set", "run.log_every=7").exit_code == 0

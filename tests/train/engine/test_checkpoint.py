import subprocess
import sys

import numpy as np
import pytest
import torch
from em_train.engine import checkpoint, distributed
from em_train.engine.errors import CheckpointError
from torch import nn


def test_newest_is_loaded_and_old_ones_go(tmp_path):
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last",
        "step-00000010.pt",
        "step-00000015.pt",
    ]
    state = checkpoint.load(tmp_path)
    assert state["step"] == int(state["x"]) == 15
    assert torch.load(tmp_path / "last", weights_only=True)["step"] == 15


def test_a_damaged_newest_is_passed_over(tmp_path):
    checkpoint.save(tmp_path, 1, {"x": torch.zeros(100)})
    newest = checkpoint.save(tmp_path, 2, {"x": torch.zeros(100)})
    newest.write_bytes(newest.read_bytes()[:500])
    assert checkpoint.load(tmp_path)["step"] == 1
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000001.pt is damaged"):
        checkpoint.load(tmp_path)


def test_what_was_passed_over_goes_when_the_run_goes_on(tmp_path):
    for step in (200, 400, 600):
        checkpoint.save(tmp_path, step, {"x": torch.zeros(100)}, best=step == 200)
    for step in (400, 600):
        (tmp_path / f"step-{step:08d}.pt").write_bytes(b"")
    assert checkpoint.load(tmp_path)["step"] == 200
    checkpoint.save(tmp_path, 300, {}, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best", "last", "step-00000200.pt", "step-00000300.pt"]
    assert checkpoint.load(tmp_path)["step"] == checkpoint.newest(tmp_path) == 300


def test_nothing_and_the_unknown_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    torch.save({"format": 99, "step": 1}, tmp_path / "step-00000001.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(tmp_path)


def test_a_single_flipped_bit_is_found(tmp_path, capfd):
    rng = np.random.default_rng(0)
    whole = torch.arange(1000.0)
    for trial in range(30):
        folder = tmp_path / str(trial)
        checkpoint.save(folder, 1, {"x": whole})
        newest = checkpoint.save(folder, 2, {"x": whole})
        data = bytearray(newest.read_bytes())
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        newest.write_bytes(bytes(data))
        state = checkpoint.load(folder)
        # What the checksums do not cover (names, padding) does not matter either.
        assert torch.equal(state["x"], whole)
        if state["step"] == 1:
            assert "step-00000002.pt is damaged" in capfd.readouterr().err


FILL = """
import resource, sys, torch
from pathlib import Path
from em_train.engine import checkpoint, distributed
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, {"x": torch.zeros(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may grow beyond this
try:
    checkpoint.save(folder, 2, {"x": torch.zeros(1_000_000)})
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_the_checkpoint_before_it_stays(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in result.stdout and "--resume" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-00000001.pt"]
    assert checkpoint.load(tmp_path)["step"] == 1


def test_the_best_stays_when_older_ones_go(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, {}, keep=2, best=step in (1, 3))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("best", "last"),
        *(f"step-0000000{step}.pt" for step in (3, 5, 6)),
    ]
    assert checkpoint.read((tmp_path / "best").resolve())["step"] == 3
    assert checkpoint.load(tmp_path)["step"] == checkpoint.newest(tmp_path) == 6
    assert checkpoint.newest(tmp_path / "nowhere") == -1


def test_another_number_of_processes_is_refused_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    checkpoint.save(tmp_path, 3, {})
    assert checkpoint.load(tmp_path, world="same")["world"] == 4
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="by 4 processes, now there are 1; .*run.world=any"):
        checkpoint.load(tmp_path, world="same")
    assert checkpoint.load(tmp_path, world="any")["step"] == 3


def test_a_newer_format_is_not_passed_over(tmp_path):
    checkpoint.save(tmp_path, 1, {})
    torch.save({"format": checkpoint.FORMAT + 1, "step": 2}, tmp_path / "step-00000002.pt")
    with pytest.raises(
        CheckpointError, match=f"format {checkpoint.FORMAT + 1}, this version reads"
    ):
        checkpoint.load(tmp_path)


def test_weights_of_another_model_are_refused_before_any_is_loaded(tmp_path):
    small, large = nn.Linear(2, 3), nn.Linear(4, 3)
    parts = {"networks": large}
    before = large.weight.detach().clone()
    for state, message in (
        ({"networks": small.state_dict()}, r"weight is \(3, 2\), wanted \(3, 4\)"),
        ({"networks": {"weight": large.weight}}, "bias is missing"),
        ({"networks": large.state_dict() | {"scale": before}}, "scale is unknown"),
        ({"model": large.state_dict()}, "no networks, only model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.restore(parts, state, tmp_path)
    assert torch.equal(large.weight, before)
    checkpoint.restore(parts, {"networks": nn.Linear(4, 3).state_dict()}, tmp_path)
    assert not torch.equal(large.weight, before)


def test_a_new_run_starts_from_the_averaged_weights_of_another(tmp_path):
    source, average = nn.Linear(2, 2), nn.Linear(2, 2)
    averaged = {f"module.{k}": v for k, v in average.state_dict().items()}
    averaged["n_averaged"] = torch.tensor(5)
    state = {"networks": source.state_dict(), "average": averaged}
    checkpoint.save(tmp_path / "run" / "checkpoints", 3, state)
    model = nn.Linear(2, 2)
    checkpoint.initialise(model, tmp_path / "run")
    assert torch.equal(model.weight, average.weight)
    # The best, where one was kept; the newest where that is damaged.
    best, worse = nn.Linear(2, 2), nn.Linear(2, 2)
    folder = tmp_path / "run" / "checkpoints"
    kept = checkpoint.save(folder, 4, {"networks": best.state_dict()}, best=True)
    checkpoint.save(folder, 5, {"networks": worse.state_dict()})
    checkpoint.initialise(model, tmp_path / "run")
    assert torch.equal(model.weight, best.weight)
    assert checkpoint.load(folder)["step"] == 5
    kept.write_bytes(kept.read_bytes()[:500])
    checkpoint.initialise(model, tmp_path / "run")
    assert torch.equal(model.weight, worse.weight)
    with pytest.raises(CheckpointError, match="weights of another model"):
        checkpoint.initialise(nn.Linear(3, 2), tmp_path / "run")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.initialise(model, tmp_path)

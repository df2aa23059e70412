import subprocess
import sys

import numpy as np
import pytest
import torch
from em_train import checkpoint
from em_train.errors import CheckpointError


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
from em_train import checkpoint
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

import subprocess
import sys

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


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), checkpoint.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    checkpoint.save(tmp_path, 1, {})
    (tmp_path / ".step-00000002.pt.tmp").write_bytes(b"half")
    checkpoint.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "step-00000001.pt"]


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

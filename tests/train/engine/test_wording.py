"""Errors of the system, of torch and of numpy become one line with a remedy."""

import sys

import numpy as np
import pytest
import torch
from em_train import cli
from em_train.engine.wording import is_mendable, one_line


def raised(act):
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    "act",
    [
        lambda: np.empty((2**40, 2**20), np.uint8),
        lambda: torch.empty(2**55, dtype=torch.uint8),
        lambda: bytearray(2**62),
    ],
)
def test_memory_that_is_out_says_what_to_lower(act):
    error = raised(act)
    assert is_mendable(error)
    text = one_line(error)
    assert text.startswith("out of memory") and "\n" not in text
    for what in ("data.batch_size", "crop", "memory_gib", "threads"):
        assert what in text


def test_memory_of_the_gpu_too_and_what_was_refused_beforehand_as_it_is():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
    assert is_mendable(error) and "Tried to allocate 20.00 MiB" in one_line(error)
    assert one_line(MemoryError("a batch takes 977 GiB")) == "a batch takes 977 GiB"
    assert not is_mendable(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_mendable(TypeError("x"))


def test_errors_of_the_system_name_the_file_and_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for act, name, remedy in (
        (lambda: (tmp_path / "none").read_text(), "none", "check the path"),
        (lambda: (tmp_path / "folder").read_text(), "folder", "name a file"),
        (lambda: (tmp_path / "file" / "x").read_text(), "file/x", "is a file"),
        (lambda: (tmp_path / "loop").read_text(), "loop", "remove them"),
        (lambda: (tmp_path / ("x" * 300)).write_text(""), "xxx", "shorter one"),
        (lambda: (tmp_path / "none").rename(tmp_path / "b"), "none and ", "check the path"),
    ):
        text = one_line(raised(act))
        assert name in text and remedy in text and "Errno" not in text
    assert one_line(OSError("wanted this; do that")) == "wanted this; do that"
    assert one_line(ValueError()) == "ValueError"


def test_the_command_says_it_in_one_line(monkeypatch, capsys):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nGPU 0 has …")

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["emtrain", "mae"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory (CUDA") and told.count("\n") == 1


def test_sizes_that_cannot_be_counted_and_names_without_end_are_one_short_line():
    with pytest.raises(Exception) as raised:
        torch.empty(10**30)
    assert is_mendable(raised.value) and one_line(raised.value).startswith("out of memory")
    assert len(one_line(ValueError(f"{'v' * 10_000}: nothing is there"))) < 300

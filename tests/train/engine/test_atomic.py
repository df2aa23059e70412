import os
import subprocess
import sys

import pytest
from em_train.engine.atomic import point, remove_leftovers, replacing


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_replaced_nor_a_link_to_one(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    for name in ("folder", "link"):
        with pytest.raises(IsADirectoryError, match=f"{name} is a folder; name a file"):
            replacing(tmp_path / name).__enter__()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link"]


def test_what_is_renamed_was_flushed(tmp_path, monkeypatch):
    """Without it a power cut can leave a name that points to nothing."""
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.fstat(fd).st_ino), real(fd)))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert flushed == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_a_link_is_moved_in_one_step(tmp_path):
    for target in ("a", "b"):
        point(tmp_path / "last", target)
        assert str((tmp_path / "last").readlink()) == target
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_leftovers_of_a_killed_process_are_removed_everywhere(tmp_path):
    (tmp_path / "images").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = f".b.png.{os.getppid()}.tmp"
    for name in (
        *("config.json", ".config.json.tmp", "images/.a.png.tmp", "images/a.png", alive),
        *(f"images/.b.png.{dead.pid}.tmp", f".c.json.{os.getpid()}.tmp", ".config.json.x.tmp"),
    ):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [alive, "config.json", "images/a.png"], (
        "another process still writes one of them"
    )


WRITE = """
import sys
from pathlib import Path
from em_train.engine.atomic import point, replacing
path = Path(sys.argv[1])
with replacing(path) as temporary:
    temporary.write_text("of the other")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_write_one_file_and_neither_fails(tmp_path):
    path = tmp_path / "report.html"
    command = [sys.executable, "-c", WRITE, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "writing\n"
        with replacing(path) as temporary:
            temporary.write_text("mine")
        assert path.read_text() == "mine"
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.wait(60) == 0
    assert path.read_text() == "of the other" and list(tmp_path.iterdir()) == [path]

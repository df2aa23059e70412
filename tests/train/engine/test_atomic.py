import os

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
    for name in ("config.json", ".config.json.tmp", "images/.a.png.tmp", "images/a.png"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["config.json", "images/a.png"]

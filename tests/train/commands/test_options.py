"""What options name: files that may be written, and ranges."""

import os

import pytest
import typer
from em_train.commands.options import (
    absolute,
    parse_channel,
    parse_numbers,
    parse_range,
    writes,
    writes_html,
    writes_png,
)

JSON = writes("table of figures", b"{", b"[")


def test_files_of_the_kind_are_replaced_and_new_ones_written(tmp_path):
    for name, text in (("a.json", '{"a": 1}'), ("b.json", "[]"), ("empty.json", "")):
        (tmp_path / name).write_text(text)
        assert JSON(tmp_path / name) == tmp_path / name
    (tmp_path / "r.html").write_text("<!doctype html><html>")
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for check, name in ((writes_html, "r.html"), (writes_png, "p.png"), (JSON, "new.json")):
        assert check(tmp_path / name) == tmp_path / name
    assert JSON(None) is None


def test_what_somebody_made_is_not_replaced(tmp_path):
    (tmp_path / "raw.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "v.zarr").mkdir()
    (tmp_path / "v.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, message in (
        ("raw.npy", "no .* that may be replaced; name another file"),
        ("folder", "is a folder; name a file"),
        ("loop", "is a link to loop"),
        ("v.zarr/zarr.json", "lies in the zarr store"),
        ("v.zarr/new.json", "lies in the zarr store"),
        ("none/new.json", "there is no folder"),
        ("raw.npy/new.json", "is a file, not a folder"),
    ):
        for check in (JSON, writes_png, writes_html):
            with pytest.raises(typer.BadParameter, match=message):
                check(tmp_path / name)
    for check, name in ((JSON, "config.json"), (JSON, "p.png"), (writes_html, "p.png")):
        with pytest.raises(typer.BadParameter, match="no .* that may be replaced"):
            check(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")  # for another program to read
    assert JSON(tmp_path / "pipe")


def test_an_empty_address_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.h5").touch()
    assert absolute("a.h5::raw") == f"{tmp_path / 'a.h5'}::raw" and absolute("mito") == "mito"
    for empty in ("", " "):
        with pytest.raises(ValueError, match="is empty; name one"):
            absolute(empty)


def test_numbers_that_are_none_are_refused_by_their_option():
    assert parse_numbers("--block", "8x64x64", int) == [8, 64, 64]
    assert parse_numbers("--position", "-1,2,3", int, positive=False) == [-1, 2, 3]
    for text in ("", "inf,1,1", "nan,1,1", "0,1,1", "1,2"):
        with pytest.raises(
            ValueError, match="--voxel-nm is .*; wanted three numbers z,y,x above 0"
        ):
            parse_numbers("--voxel-nm", text, float)
    assert (parse_channel("2"), parse_channel("mito"), parse_channel(None)) == (2, "mito", None)
    with pytest.raises(ValueError, match="--channel is empty"):
        parse_channel("")


def test_ranges_are_of_plain_digits():
    assert parse_range("--fit-z", "880:900") == (880, 900)
    for wrong in ("²:³", "1:", "a:b", "1:-2", "١:٢"):
        with pytest.raises(ValueError, match="--fit-z .*wanted a range"):
            parse_range("--fit-z", wrong)

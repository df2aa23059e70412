"""The same spellings mean the same everywhere: for classes that are trained and those that are judged."""

from pathlib import Path

import numpy as np
import pytest
from em_data import Box, new_store, open_volume
from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_train.cli import app
from em_train.commands.options import absolute, absolute_labels
from em_train.judge.labels import names_of, parse
from em_train.judge.truth import open_truth
from em_train.segment.labels import open_labels, truth_of
from typer.testing import CliRunner

SHAPE, SIZE = (4, 12, 12), (40.0, 4.0, 4.0)
EVERYTHING = Box((0, 0, 0), SHAPE)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("mito", ("mito", "mito", None, "")),
        ("a.zarr/labels/mito/", ("mito", "a.zarr/labels/mito/", None, "")),
        ("b.h5::vol/cells@12", ("cells 12", "b.h5::vol/cells", 12, "")),
        ("m=s3://bucket@home/mito.zarr", ("m", "s3://bucket@home/mito.zarr", None, "")),
        ("big mito=a.zarr@1", ("big mito", "a.zarr", 1, "")),
        ("mito(1).zarr@2", ("mito_1_ 2", "mito(1).zarr", 2, "")),
        ("s.tif?voxel_nm=50,4,4", ("s", "s.tif?voxel_nm=50,4,4", None, "")),
        ("a.tif?voxel_nm=5,4,4@1", ("a 1", "a.tif?voxel_nm=5,4,4", 1, "")),
        ("m=images:a?match={name}_m.png", ("m", "images:a?match={name}_m.png", None, "")),
        ("borders:cells.zarr", ("border", "cells.zarr", None, "borders")),
        ("membrane=borders:cells.zarr", ("membrane", "cells.zarr", None, "borders")),
        ("classes:a.zarr/labels/map", ("classes", "a.zarr/labels/map", None, "classes")),
    ],
)
def test_options(text, want):
    for one in (text, *absolute_labels([text], [])):
        found = parse(one)
        assert (found.called, found.address, found.value, found.kind) == want


def test_addresses_with_options_stay_right_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.h5", "what?.h5"):
        (tmp_path / name).touch()
    for address, place in (
        ("a.h5::raw?voxel_nm=5,4,4", "a.h5"),
        ("what?.h5::raw?channel=1", "what?.h5"),
        ("images:.?least_px=9", "."),
    ):
        scheme = "images:" * address.startswith("images:")
        rest = address.removeprefix(scheme + place)
        assert absolute(address) == f"{scheme}{tmp_path.absolute() / place}{rest}"
    assert absolute("gone.tif?voxel_nm=5,4,4") == "gone.tif?voxel_nm=5,4,4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(("", "wanted NAME=ADDRESS"), ("@3", "wanted NAME=ADDRESS")),
        *(("mito=", "wanted NAME=ADDRESS"), ("mito=@3", "wanted NAME=ADDRESS")),
        *(("borders:", "wanted NAME=ADDRESS"), ("x=classes:", "wanted NAME=ADDRESS")),
        *(("borders:cells@3", "leave @3 out"), ("classes:map@3", "leave @3 out")),
        ("mito=classes:map", "leave mito= out"),
    ],
)
def test_an_option_that_says_nothing_or_too_much_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A raw volume with a label image `own`, and a file of the same name in the current folder."""
    own = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    with new_store(tmp_path / "raw.zarr") as store:
        store.add_image(SHAPE, np.uint8, SIZE).write(EVERYTHING, own)
        image = store.add_image(SHAPE, np.uint8, SIZE, label="own", classes=("rest", "a", "b"))
        image.write(EVERYTHING, own)
    with new_store(tmp_path / "own") as store:
        store.add_image(SHAPE, np.uint8, SIZE).write(EVERYTHING, (own == 0).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    return open_volume(tmp_path / "raw.zarr"), own


def judged(raw, options):
    """What `evaluate` and `probe` read: classes (Z, Y, X) and their names."""
    truth = open_truth(raw, options, raw)
    return truth.read(EVERYTHING), truth.names


def trained(raw, options):
    """The same as `segment` reads it."""
    (labels,), classes = open_labels([raw], options)
    truth, known = truth_of(labels, classes, EVERYTHING)
    assert known.all()
    numbers = np.arange(1, 1 + len(truth))[:, None, None, None]
    return (truth.numpy() * numbers).max(0), classes


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["x=own"], ("x",)),
        (["x=own@2"], ("x",)),
        (["own@1", "own@2"], ("own 1", "own 2")),
        (["classes:own"], ("a", "b")),
        (["borders:own"], ("border",)),
        (["membrane=borders:own"], ("membrane",)),
    ],
)
def test_what_is_trained_is_what_is_judged(folder, options, names):
    raw, _ = folder
    found, called = judged(raw, options)
    other, classes = trained(raw, options)
    np.testing.assert_array_equal(found, other)
    assert called[1:] == classes.names == names
    assert 0 < (found > 0).sum() < found.size


def test_a_single_address_is_a_map_for_who_judges_and_a_class_for_who_trains(folder):
    raw, own = folder
    found, names = judged(raw, ["own"])
    np.testing.assert_array_equal(found, own)
    assert names == ("rest", "a", "b")
    found, classes = trained(raw, ["own"])
    np.testing.assert_array_equal(found, own > 0)
    assert classes.names == ("own",)


def test_the_label_image_wins_over_a_file_of_its_name_everywhere(folder, capsys):
    raw, own = folder
    (stays,) = absolute_labels(["x=own"], [raw.source])
    assert stays == "x=own"
    for read in (judged, trained):
        np.testing.assert_array_equal(read(raw, [stays])[0], own > 0)
        told = capsys.readouterr().err
        assert f"the label image own stored with {raw.source}" in told and "./own" in told
    for option in ("x=./own", *absolute_labels(["x=./own"], [raw.source])):
        for read in (judged, trained):
            np.testing.assert_array_equal(read(raw, [option])[0], own == 0)
            assert "label image" not in capsys.readouterr().err


@pytest.mark.parametrize("volume", [("--data",), ("--set", "data.volumes=")])
def test_the_command_keeps_the_name_of_a_label_image(folder, volume):
    raw, _ = folder
    address = raw.source if len(volume) == 1 else f'{volume[1]}["{raw.source}"]'
    for typed, kept in (("x=own", "x=own"), ("x=./own", f"x={Path.cwd() / 'own'}")):
        command = ["segment", volume[0], address, "--labels", typed, "--show-config"]
        told = CliRunner(env={"COLUMNS": "300"}).invoke(app, command, catch_exceptions=False)
        assert told.exit_code == 0 and f"('{kept}',)" in told.output


def test_what_is_not_there_is_named_with_what_is(folder):
    raw, _ = folder
    for read in (judged, trained):
        with pytest.raises(VolumeNotFoundError, match=r"^--labels mito: .*raw\.zarr: own$"):
            read(raw, ["mito"])

    Path("empty").mkdir()
    for read in (judged, trained):
        with pytest.raises(VolumeFormatError, match="^--labels mito=empty: empty is a folder, but"):
            read(raw, ["mito=empty"])
    np.save("float.npy", np.zeros(SHAPE, np.float32))
    for read in (judged, trained):
        with pytest.raises(ValueError, match="float32; wanted integer"):
            read(raw, ["float.npy"])


def test_a_part_of_a_slice_is_read_as_in_the_whole(folder):
    raw, _ = folder
    part = Box((1, 3, 2), (2, 5, 9))
    for option in ("borders:own", "classes:own", "x=own@1"):
        truth = open_truth(raw, [option], raw)
        np.testing.assert_array_equal(truth.read(part), truth.read(EVERYTHING)[part.slices])


def test_a_map_has_no_more_than_256_values():
    few = np.array([[[0, 3, 255]]], np.uint16)
    assert names_of(open_volume(few), ignore=255) == ("class 0", "class 1", "class 2", "class 3")
    with pytest.raises(ValueError, match="up to 70000.*borders:"):
        names_of(open_volume(np.array([[[70_000]]], np.uint32)))

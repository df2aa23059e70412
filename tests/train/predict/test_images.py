"""A run over a collection of images: pictures and a table, whole or not there, nothing lost."""

import csv
import os
import signal
import warnings

import numpy as np
import pytest
from em_data import (
    Box,
    StoreExistsError,
    VolumeReadError,
    grey_range,
    match_labels,
    open_images,
)
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.predict import images as prediction
from em_train.predict.tiles import predict_logits
from em_train.recipes import mae
from em_train.segment.run import open_run
from PIL import Image
from typer.testing import CliRunner


def predict(run, folder, out, *more, code=0):
    told = CliRunner().invoke(
        app,
        [*map(str, ("predict", run, "--data", f"images:{folder}", "--out", out, *more))],
        catch_exceptions=False,
    )
    assert told.exit_code == code, told.output
    return told.output


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def whole(image):
    return Box((0, 0, 0), image.shape)


def contents(folder):
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_classes_and_probabilities_are_those_of_the_network(of_images, particles, tmp_path):
    out = tmp_path / "out"
    predict(of_images, particles / "images", out, "--output", "classes,probabilities")
    stored = open_run(of_images)
    images = open_images(f"images:{particles / 'images'}")
    for number, image in enumerate(images):
        name = images.name(number)
        logits = predict_logits(
            stored.network, image, grey_range(image), whole(image), stored.device
        )
        found = read(out / f"probabilities/particles/{name}.png")
        assert found.shape == image.shape[1:]
        np.testing.assert_allclose(found, 255 * logits[0, 0].sigmoid().numpy(), atol=0.51)
        classes = read(out / f"classes/{name}.png")
        assert set(np.unique(classes)) == {0, 1}
        truth = read(particles / f"masks/{name}_mask.png") > 0
        assert ((classes > 0) == truth).mean() > 0.98
    with Image.open(out / "classes/0.png") as picture:  # in the colours of all pictures
        assert picture.mode == "P" and picture.getpalette()[:3] == [0, 0, 0]
    assert sorted(path.name for path in out.iterdir()) == [
        "classes",
        "prediction.json",
        "probabilities",
    ]


def test_instances_come_with_a_table_and_a_histogram(of_images, particles, tmp_path):
    out = tmp_path / "out"
    told = predict(
        *(of_images, f"{particles / 'images'}?voxel_nm=1,2,2", out, "--output", "instances"),
    )
    assert "instances.csv" in told
    with (out / "instances.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number in range(6):
        found = read(out / f"instances/{number}.png")
        assert found.dtype in (np.uint16, np.int32)
        own = [row for row in rows if row["image"] == str(number)]
        assert [int(row["id"]) for row in own] == list(range(1, found.max() + 1))
        areas = np.bincount(found.ravel())[1:]
        assert [int(row["area_px"]) for row in own] == areas.tolist()
        assert [float(row["area_nm2"]) for row in own] == (4.0 * areas).tolist()
    with Image.open(out / "instances.png") as picture:
        assert picture.size == (720, 420)
    # What was written can be read as labels of the same images.
    images = open_images(f"images:{particles / 'images'}")
    labels = match_labels(images, {"particles": f"images:{out / 'instances'}"})
    assert labels[0].read(whole(images[0])).max() == read(out / "instances/0.png").max()
    # Without parting, fewer: some of the particles touch.
    joined_at = tmp_path / "joined"
    predict(of_images, particles / "images", joined_at, "--output", "instances", "--neck", "0")
    with (joined_at / "instances.csv").open(newline="") as file:
        joined = list(csv.DictReader(file))
    assert 6 < len(joined) < len(rows) and joined[0]["area_nm2"] == ""


def test_after_a_signal_it_goes_on_and_nothing_has_the_name_before_it_is_whole(
    of_images, particles, tmp_path, monkeypatch
):
    more = ("--output", "classes,instances", "--instances", "particles", "--neck", "0.5")
    predict(of_images, particles / "images", tmp_path / "whole", *more)
    made = []
    make = prediction._make

    def interrupted(images, number, folder, pictures):
        make(images, number, folder, pictures)
        made.append(number)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prediction, "_make", interrupted)
    out = tmp_path / "out"
    told = predict(of_images, particles / "images", out, *more, code=75)
    assert "--neck 0.5" in told and "--resume" in told and not out.exists()
    begun = tmp_path / ".out.unfinished"
    assert len(list((begun / "classes").iterdir())) == 3
    with pytest.raises(StoreExistsError, match="was begun already; go on with --resume"):
        predict(of_images, particles / "images", out, *more)
    with pytest.raises(StoreExistsError, match="was begun with other neck"):
        predict(of_images, particles / "images", out, *more[:-1], "0.6", "--resume")
    before = {path: path.stat().st_mtime_ns for path in (begun / "classes").iterdir()}
    monkeypatch.undo()
    predict(of_images, particles / "images", out, *more, "--resume")
    assert contents(out) == contents(tmp_path / "whole") and not begun.exists()
    assert all((out / "classes" / p.name).stat().st_mtime_ns == t for p, t in before.items())
    assert "is whole already" in predict(of_images, particles / "images", out, *more, "--resume")


def test_nothing_is_lost(of_images, particles, draw_particles, tmp_path):
    own = draw_particles(tmp_path / "own", sizes=[(40, 40)])
    for place in (own / "images", own, own / "images" / "out"):
        with pytest.raises(StoreExistsError, match="which is read here"):
            predict(of_images, own / "images", place, "--overwrite")
    out = tmp_path / "out"
    predict(of_images, own / "images", out)
    before = contents(out)
    with pytest.raises(StoreExistsError, match="exists already; choose another name, or"):
        predict(of_images, own / "images", out)
    predict(of_images, own / "images", out, "--overwrite", "--output", "probabilities")
    assert {name.partition("/")[0] for name in contents(out)} == {
        "prediction.json",
        "probabilities",
    }
    predict(of_images, own / "images", out, "--overwrite")
    assert contents(out) == before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError, match=r"holds notes\.txt, which is no part"):
        predict(of_images, own / "images", out, "--overwrite")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(StoreExistsError, match="is no prediction of images"):
        predict(of_images, own / "images", tmp_path / "other", "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out", "own"]


def test_what_cannot_be_predicted_is_refused(of_images, draw_particles, tmp_path):
    own = draw_particles(tmp_path / "own", sizes=[(40, 40)] * 2)
    images, out = own / "images", tmp_path / "out"
    for more, message in (
        (("--processes", "2"), "^images:.* leave --processes, --dask and --block out"),
        (("--neck", "0.5"), "--neck would change nothing without --output instances"),
        (("--least-px", "5"), "--least-px would change nothing without --output instances"),
        (("--output", "instances", "--instances", "dust"), "names the class 'dust'"),
        (("--output", "instances", "--neck", "1.5"), "--neck is 1.5"),
        (("--output", "embedding"), "wanted classes or probabilities or instances"),
    ):
        with pytest.raises(ValueError, match=message):
            predict(of_images, images, out, *more)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    with pytest.raises(VolumeReadError, match=r"1\.png.*cannot be read"):
        predict(of_images, images, out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict(of_images, f"{images}?unreadable=skip", tmp_path / "some", "--output", "instances")
    assert [path.name for path in (tmp_path / "some/instances").iterdir()] == ["0.png"]
    Image.new("L", (40, 40)).save(images / "0.tif")
    with pytest.raises(StoreExistsError, match="several images of one name .* 0; predict them"):
        predict(of_images, f"{images}?unreadable=skip", out)
    assert not out.exists()


def test_large_numbers_and_real_values_become_tiff(tmp_path):
    for values, name in (
        (np.full((3, 4), 70_000, np.uint32), "a.tif"),
        (np.full((3, 4), 0.25, np.float32), "a.tif"),
        (np.full((3, 4), 60_000, np.uint16), "a.png"),
    ):
        prediction.save_picture(values, tmp_path, "a")
        np.testing.assert_array_equal(read(tmp_path / name), values)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tif"]


def test_runs_that_predict_volumes_say_so(tmp_path, particles):
    config = resolve(mae.Config, [Layer("test", {"run": {"device": "cpu"}})])
    new_run(tmp_path / "run", config, "mae")
    with pytest.raises(ValueError, match="is a run that predicts volumes; give it one volume"):
        predict(tmp_path / "run", particles / "images", tmp_path / "out")

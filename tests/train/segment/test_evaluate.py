import json
import shutil

import numpy as np
import pytest
import torch
from em_data import grey_range, new_store, open_volume
from em_data.geometry import Box
from em_train.cli import app
from em_train.commands import judge
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.judge import truth
from em_train.judge.truth import Protocol
from em_train.predict.tiles import predict_logits
from em_train.recipes import segment as recipe
from em_train.segment import validation
from em_train.segment.run import open_run
from PIL import Image
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, and the volume that it was trained on."""
    path = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    shape, size = (8, 64, 64), (40.0, 8.0, 8.0)
    with new_store(path / "v.zarr") as store:
        image = store.add_image(shape, np.uint8, size)
        image.write(Box((0, 0, 0), shape), rng.integers(0, 255, shape).astype(np.uint8))
        mask = store.add_image(shape, np.uint8, size, label="mito")
        mask.write(Box((0, 0, 0), shape), (rng.random(shape) > 0.7).astype(np.uint8))
    settings = {
        "data": {
            "volumes": [str(path / "v.zarr")],
            "labels": ["mito"],
            "patch_vx": 32,
            "split": {"z": [4, 5]},
        },
        "model": {"unet": {"channels": [4, 6]}},
        "run": {"steps": 2, "device": "cpu"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(path / "run", config, "segment"))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_scores_are_those_of_the_run_on_the_same_slices(run, tmp_path):
    told = invoke(
        *(run / "run", "--data", run / "v.zarr", "--score-z", "4:5"),
        *("--json", tmp_path / "s.json", "--picture", tmp_path / "worst.png"),
    )
    assert told.exit_code == 0 and "boundary_f1" in told.output
    found = json.loads((tmp_path / "s.json").read_text())
    own = json.loads((run / "run" / "scores.json").read_text())
    assert found["classes"] == own["classes"]
    assert found["protocol"] == {  # nothing of the protocol that had no effect
        "data": str(open_volume(run / "v.zarr").source),
        "labels": ["mito"],
        "score_z": [4, 5],
        "slices": ["z 4"],
        "grey": json.loads((run / "run" / "grey.json").read_text())[0],
    }
    assert (tmp_path / "worst.png").exists() and (tmp_path / "worst-best.png").exists()


def test_without_a_range_all_labelled_slices_are_scored(run, tmp_path):
    told = invoke(
        *(run / "run", "--data", run / "v.zarr", "--labels", "mito", "--json", tmp_path / "s.json"),
        *("--picture", tmp_path / "worst.png"),
    )
    assert told.exit_code == 0
    slices = json.loads((tmp_path / "s.json").read_text())["protocol"]["slices"]
    assert slices == [f"z {z}" for z in range(8)]


def test_labels_of_the_run_are_not_those_of_another_volume(run, tmp_path, monkeypatch):
    """Unless they are label images that lie beside it."""
    shape, size = (4, 64, 64), (40.0, 8.0, 8.0)
    voxels = np.random.default_rng(1).integers(0, 2, shape).astype(np.uint8)
    for name in ("bare", "labelled"):
        with new_store(tmp_path / f"{name}.zarr") as store:
            store.add_image(shape, np.uint8, size).write(Box((0, 0, 0), shape), voxels)
            if name == "labelled":
                mask = store.add_image(shape, np.uint8, size, label="mito")
                mask.write(Box((0, 0, 0), shape), voxels)
    picture = ("--picture", tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"bare.zarr is not what .* was trained on; .*--labels"):
        invoke(run / "run", "--data", tmp_path / "bare.zarr", *picture)
    assert invoke(run / "run", "--data", tmp_path / "labelled.zarr", *picture).exit_code == 0
    monkeypatch.chdir(tmp_path)
    same = f"../{run.name}/v.zarr"  # what it was trained on, by another name
    assert invoke(run / "run", "--data", same, *picture).exit_code == 0


def test_labels_of_a_run_of_several_volumes_are_those_of_the_volume(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "two")
    path = tmp_path / "two" / "config.json"
    stored = json.loads(path.read_text())
    data = stored["data"]
    data["volumes"] = [str(tmp_path / "first.zarr"), *data["volumes"]]
    data["labels"] = [f"mito={tmp_path / 'of-the-first.zarr'}", "mito=mito"]
    path.write_text(json.dumps(stored))
    scores = ("--score-z", "4:5", "--json", tmp_path / "s.json")
    assert invoke(tmp_path / "two", "--data", run / "v.zarr", *scores).exit_code == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["protocol"]["labels"] == ["mito=mito"]
    assert found["classes"] == json.loads((run / "run" / "scores.json").read_text())["classes"]


def test_scores_are_written_where_a_picture_cannot_be(run, tmp_path):
    shutil.copytree(run / "run", tmp_path / "run", ignore=shutil.ignore_patterns("images"))
    (tmp_path / "run" / "images").touch()
    told = invoke(
        *(tmp_path / "run", "--data", run / "v.zarr", "--score-z", "4:5"),
        *("--json", tmp_path / "s.json"),
    )
    assert told.exit_code == 0 and "boundary_f1" in told.output
    assert "could not be saved" in told.output and "--picture" in told.output
    assert json.loads((tmp_path / "s.json").read_text())["classes"]


def test_figures_that_could_not_be_written_are_refused_before_the_work(tmp_path):
    for path in (tmp_path / "nowhere" / "s.json", tmp_path):
        told = invoke("no-run", "--data", "no-volume", "--json", path)
        assert told.exit_code == 2 and "--json" in told.output


def test_instances_are_those_of_scikit_image(run, tmp_path):
    """What hangs together of a class and between it, slice by slice."""
    told = invoke(
        *(
            run / "run",
            "--data",
            run / "v.zarr",
            "--score-z",
            "3:5",
            "--picture",
            tmp_path / "p.png",
        ),
        *("--instances", "mito", "--instances", "between:mito", "--json", tmp_path / "s.json"),
    )
    assert told.exit_code == 0 and "adapted Rand error" in told.output
    stored, volume = open_run(run / "run"), open_volume(run / "v.zarr")
    grey, predicted, true = grey_range(volume), [], []
    for z in (3, 4):
        box = Box((z, 0, 0), (1, 64, 64))
        where = (volume, grey, box, torch.device("cpu"), stored.precision)
        p = predict_logits(stored.network, *where).sigmoid()[0, 0]
        found = (p * 255).round().numpy() >= np.ceil(stored.thresholds[0] * 255 - 1e-6)
        predicted.append(label(found, connectivity=1) + 10_000 * z)
        own = label(volume.labels("mito").read(box)[0], connectivity=1)
        true.append(np.where(own > 0, own + 10_000 * z, 0))
    predicted, true = np.stack(predicted), np.stack(true)
    objects, between = json.loads((tmp_path / "s.json").read_text())["instances"]
    assert (objects["of"], between["of"]) == ("mito", "between:mito")
    assert objects["instances"] == len(np.unique(true)) - 1
    split, merge = variation_of_information(true[true > 0], predicted[true > 0])
    assert (objects["voi_split"], objects["voi_merge"]) == pytest.approx((split, merge), abs=1e-6)
    error, *_ = adapted_rand_error(true, predicted, ignore_labels=(0,))
    assert objects["rand_error"] == pytest.approx(error)
    cells = [label(one == 0, connectivity=1).max() for one in true]
    assert between["instances"] == sum(cells)


def test_classes_that_are_not_there_are_named(run, tmp_path):
    size, voxels = (40.0, 8.0, 8.0), np.zeros((8, 64, 64), np.uint8)
    voxels[6:] = 1
    with new_store(tmp_path / "late.zarr") as store:
        store.add_image(voxels.shape, np.uint8, size).write(Box((0, 0, 0), voxels.shape), voxels)
    late = ("--data", run / "v.zarr", "--labels", f"mito={tmp_path / 'late.zarr'}")
    with pytest.raises(
        ValueError,
        match=r"no voxel of class 'mito' .*\(z 2, z 3\) of .*v\.zarr, labelled by mito=.*late",
    ):
        invoke(run / "run", *late, "--score-z", "2:4")


def test_the_help_says_what_is_looked_at():
    told = " ".join(judge.evaluate.__doc__.split())
    assert f"At most {Protocol().slices} slices" in told
    assert (
        f"{truth.WINDOW_VX} px of a dense-ssl run, {validation.WINDOW_VX} px of a segment" in told
    )


def test_instances_of_another_kind_of_run_are_refused(run, tmp_path):
    (tmp_path / "config.json").write_text('{"command": "dense-ssl"}')
    with pytest.raises(ValueError, match="--instances would change nothing: .* run of"):
        invoke(tmp_path, "--data", run / "v.zarr", "--instances", "mito")
    with pytest.raises(ValueError, match="'cell'; wanted one of mito"):
        invoke(run / "run", "--data", run / "v.zarr", "--instances", "between:cell")


def test_what_does_not_fit_is_refused_by_name(run):
    for options, message in (
        (("--fit-z", "0:2"), "nothing to fit"),
        (("--score-z", "4:9"), "has slices 0:8"),
        (("--labels", "other=mito"), "knows mito, the labels are other"),
        (("--border-vx", "40", "--no-baselines"), "--border-vx and --no-baselines would change"),
        (("--seed", "0"), "--seed would change nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            invoke(run / "run", "--data", run / "v.zarr", *options)
    (run / "run" / "classes.json").rename(run / "run" / "hidden")
    with pytest.raises(FileNotFoundError, match="finish the run first"):
        invoke(run / "run", "--data", run / "v.zarr")
    (run / "run" / "hidden").rename(run / "run" / "classes.json")


def test_borders_of_instances_are_trained_judged_and_divided(tmp_path):
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 9, (6, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint16)
    with new_store(tmp_path / "v.zarr") as store:
        image = store.add_image(cells.shape, np.uint8, (40.0, 8.0, 8.0))
        image.write(Box((0, 0, 0), cells.shape), (cells * 20).astype(np.uint8))
        image = store.add_image(cells.shape, np.uint16, (40.0, 8.0, 8.0), label="cells")
        image.write(Box((0, 0, 0), cells.shape), cells)
    settings = {
        "data": {
            "volumes": [str(tmp_path / "v.zarr")],
            "labels": ["borders:cells"],
            "patch_vx": 32,
        },
        "model": {"unet": {"channels": [4, 6]}},
        "run": {"steps": 1, "device": "cpu"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(tmp_path / "run", config, "segment"))
    told = invoke(
        *(tmp_path / "run", "--data", tmp_path / "v.zarr", "--score-z", "4:6"),
        *("--instances", "between:border", "--json", tmp_path / "s.json"),
    )
    assert told.exit_code == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert [one["class"] for one in found["classes"]] == ["border"]
    # Blocks of one number that touch hang together; borders part the others.
    assert found["instances"][0]["instances"] == sum(
        label(one + 1, connectivity=1).max() for one in cells[4:]
    )


def test_images_that_a_run_held_out_score_as_they_did(of_images, particles, tmp_path):
    images = f"images:{particles / 'images'}"
    told = invoke(
        *(of_images, "--data", f"{images}?take=4:6", "--instances", "particles"),
        *("--json", tmp_path / "s.json", "--picture", tmp_path / "worst.png"),
    )
    assert told.exit_code == 0 and "2 of 2 images were trained on, or weights" in told.output
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["classes"] == json.loads((of_images / "scores.json").read_text())["classes"]
    assert found["protocol"]["images"] == ["4", "5"]
    (judged,) = found["instances"]
    masks = [np.asarray(Image.open(particles / f"masks/{n}_mask.png")) for n in (4, 5)]
    parts = sum(label(mask, connectivity=1).max() for mask in masks)
    assert judged["instances"] == parts and judged["rand_recall"] > 0.9
    told = invoke(
        *(of_images, "--data", f"{images}?take=4:6", "--instances", "particles", "--neck", "0.75"),
        *("--json", tmp_path / "parted.json", "--picture", tmp_path / "worst.png"),
    )
    parted = json.loads((tmp_path / "parted.json").read_text())
    assert parted["protocol"]["neck"] == 0.75
    assert parted["instances"][0]["rand_precision"] > judged["rand_precision"] + 0.1
    with pytest.raises(ValueError, match="--neck parts instances, and none are judged"):
        invoke(of_images, "--data", images, "--neck", "0.5")


def test_every_image_of_another_folder_is_scored(of_images, draw_particles, tmp_path):
    path = draw_particles(tmp_path / "others", sizes=[(40, 50)] * 20)
    (path / "images").rename(path / "raw")
    labels = f"particles=images:{path / 'masks'}?match={{name}}_mask.png"
    options = ("--json", tmp_path / "s.json", "--picture", tmp_path / "worst.png")
    told = invoke(of_images, "--data", f"images:{path / 'raw'}", "--labels", labels, *options)
    assert told.exit_code == 0 and "were trained on" not in told.output
    (found,) = json.loads((tmp_path / "s.json").read_text())["classes"]
    assert len(found["slices"]) == 20 and found["dice"] > 0.8
    for more, message in (
        ((), r"is not what .* was trained on; name its labels .* NAME=images:FOLDER"),
        (("--labels", labels, "--score-z", "0:1"), r"\?take=120:160"),
        (
            ("--labels", labels.replace("particles=", "dust=")),
            "knows particles, the labels are dust",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            invoke(of_images, "--data", f"images:{path / 'raw'}", *more, *options)


def test_intervals_of_images_come_from_drawing_images(of_images):
    """One image is no sample of many, whatever the number of its tiles."""
    stored = json.loads((of_images / "scores.json").read_text())["classes"][0]
    dice = [one["dice"] for one in stored["slices"].values()]
    assert stored["dice_interval"] == pytest.approx([min(dice), max(dice)])

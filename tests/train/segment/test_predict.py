import json

import em_models
import numpy as np
import pytest
import torch
from em_data import grey_range, new_store, open_volume
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import segment as recipe
from em_train.segment.instances import components
from em_train.segment.predict import class_map
from typer.testing import CliRunner

SHAPE, SIZE = (4, 150, 140), (40.0, 8.0, 8.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A run of two steps on a volume with two classes."""
    path = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    with new_store(path / "v.zarr") as store:
        image = store.add_image(SHAPE, np.uint8, SIZE)
        image.write(Box((0, 0, 0), SHAPE), rng.integers(0, 255, SHAPE).astype(np.uint8))
        for name in ("membrane", "mito"):
            mask = store.add_image(SHAPE, np.uint8, SIZE, label=name)
            mask.write(Box((0, 0, 0), SHAPE), (rng.random(SHAPE) > 0.7).astype(np.uint8))
    settings = {
        "data": {"volumes": [str(path / "v.zarr")], "labels": ["membrane", "mito"], "patch_vx": 32},
        "model": {
            "kind": getattr(request, "param", "unet"),
            "unet": {"channels": [4, 6]},
            "hrnet": {"channels": [4, 6], "modules": 2},
        },
        "run": {"steps": 2, "device": "cpu", "precision": "fp32"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(path / "run", config, "segment"))
    return path


def predict(run, out, *more):
    told = CliRunner().invoke(
        app,
        [*map(str, ("predict", run / "run", "--data", run / "v.zarr", "--out", out, *more))],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output


@pytest.mark.parametrize("run", ["unet", "hrnet"], indirect=True)
def test_probabilities_are_those_of_the_network_and_classes_follow_the_thresholds(run, tmp_path):
    raw = open_volume(run / "v.zarr")
    stored = json.loads((run / "run" / "classes.json").read_text())
    predict(run, tmp_path / "p.zarr", "--output", "probabilities")
    found = np.stack([open_volume(tmp_path / "p.zarr", channel=c)[:, :, :] for c in range(2)])
    network = em_models.load(run / "run" / "weights" / "network")
    image = torch.from_numpy(grey_range(raw).unit(raw[:, :, :]))
    with torch.no_grad():
        want = network(image[:, None]).sigmoid().numpy()  # (Z, C, Y, X)
    halo = network.config.halo
    inner = (..., slice(halo, -halo), slice(halo, -halo))
    differ = np.abs(found.swapaxes(0, 1)[inner].astype(float) - 255 * want[inner])
    assert differ.max() <= 0.51  # rounded to bytes
    predict(run, tmp_path / "c.zarr", "--processes", "1")
    classes = open_volume(tmp_path / "c.zarr")
    np.testing.assert_array_equal(classes[:, :, :], class_map(found, tuple(stored["thresholds"])))
    assert classes.voxel_size_nm == SIZE


def test_other_outputs_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="wanted classes or probabilities"):
        predict(run, tmp_path / "e.zarr", "--output", "embedding")


def test_instances_are_those_of_whole_slices_whatever_the_blocks(run, tmp_path):
    more = ("--output", "instances,classes", "--instances", "mito", "--neck", "0")
    predict(run, tmp_path / "whole.zarr", *more)
    predict(run, tmp_path / "blocks.zarr", *more, "--block", "32,128,128")
    volume = open_volume(tmp_path / "whole.zarr")
    classes, found = volume[:, :, :], volume.labels("instances")[:, :, :]
    stored = json.loads((run / "run" / "classes.json").read_text())["names"]
    assert stored == ["membrane", "mito"] and found.dtype == np.uint32
    for z in range(SHAPE[0]):  # mito wins where both are found
        np.testing.assert_array_equal(found[z], components(classes[z] == 2))
    other = open_volume(tmp_path / "blocks.zarr")
    np.testing.assert_array_equal(other.labels("instances")[:, :, :], found)
    np.testing.assert_array_equal(other[:, :, :], classes)
    predict(
        run, tmp_path / "cells.zarr", "--output", "instances", "--instances", "between:membrane"
    )
    cells = open_volume(tmp_path / "cells.zarr")
    assert cells.dtype == np.uint32 and (cells[:, :, :] > 0).any()
    with pytest.raises(ValueError, match="say whose instances are wanted"):
        predict(run, tmp_path / "no.zarr", "--output", "instances")
    assert not (tmp_path / "no.zarr").exists()

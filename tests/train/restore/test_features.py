"""The features of a restorer: those of the network over the whole volume, without its head."""

import json

import em_models
import numpy as np
import pytest
import torch
from em_data import Volume, grey_range, new_store
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.features.open import open_run
from em_train.features.slab import Slab
from em_train.recipes import restore
from em_train.restore.networks import make_networks
from typer.testing import CliRunner

SIZE = (40.0, 8.0, 8.0)
KINDS = {
    "unet": {"unet": {"channels": [4, 6]}},
    "hrnet": {"hrnet": {"channels": [4, 6], "modules": 1}},
    "timm-hrnet": {"timm_hrnet": {"width": 4, "stem_stride": 1}},
}


def restored(path, kind="unet", **data):
    settings = {
        "data": {"volumes": ["nowhere.zarr"], "patch_vx": 32, **data},
        "model": {"kind": kind, **KINDS[kind]},
        "run": {"device": "cpu", "precision": "fp32"},
    }
    config = resolve(restore.Config, [Layer("test", settings)])
    folder = new_run(path, config, "restore")
    torch.manual_seed(0)
    em_models.save(make_networks(config.model, config.data)["network"], folder.weights / "network")
    (path / "restoration.json").write_text(json.dumps({"voxel_size_nm": SIZE}))
    folder.close()
    return path


@pytest.fixture(scope="module")
def volume():
    voxels = np.random.default_rng(0).integers(0, 256, (6, 160, 130), np.uint8)
    return Volume(voxels, "noise", "numpy", SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_makes_the_answer_of_the_features(tmp_path, kind):
    network = em_models.load(restored(tmp_path / "run", kind) / "weights" / "network")
    head = network.heads[0] if kind == "unet" else network.head
    image = torch.rand(1, 1, 16, 24)
    with torch.no_grad():
        head[-1].weight.normal_()  # a restorer begins with nothing to add
        found = open_run(tmp_path / "run").network(image)
        torch.testing.assert_close(head(found), network(image))
    assert found.shape[1:] == (head[-1].in_channels, 16, 24)


@pytest.mark.parametrize(("kind", "slices", "channels"), [("unet", 3, 2), ("hrnet", 1, 4)])
def test_a_patch_has_the_mean_of_the_features_of_its_pixels(
    tmp_path, volume, kind, slices, channels
):
    found = open_run(restored(tmp_path / "run", kind, slices=slices))
    grey = grey_range(volume)
    (maps,) = found.maps(Slab(volume, grey, (2, 5, 5), (1, 13, 11), (2, 3, 4)))
    assert maps.shape == (channels, 2, 3, 4)
    whole = torch.from_numpy(grey.unit(volume.array, clip=False))[:, :, :128]
    around = slices // 2
    images = torch.stack([whole[z - around : z + around + 1] for z in (2, 3)])
    with torch.no_grad():
        box = found.network(images)[:, :, 65:70, 60:65]  # patch (1, 13, 12), with all it looks at
    torch.testing.assert_close(maps[:, 0, 0, 1], box.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    # The same patch as part of another slab.
    (other,) = found.maps(Slab(volume, grey, (2, 5, 5), (1, 12, 12), (1, 2, 1)))
    assert torch.equal(other[:, 0, 1, 0], maps[:, 0, 0, 1])
    (untrained,) = found.untrained(1).maps(Slab(volume, grey, (2, 5, 5), (1, 13, 11), (2, 3, 4)))
    assert not torch.equal(untrained, maps)
    assert found.knows_where(volume, -1, 0) < 0.5


def test_of_super_resolution_they_are_on_the_finer_grid(tmp_path, volume):
    path = tmp_path / "v.zarr"
    with new_store(path) as store:
        shown = store.add_image(volume.shape, np.uint8, (40.0, 16.0, 16.0))
        shown.write(Box((0, 0, 0), volume.shape), volume.array)
    run = restored(tmp_path / "run", task="super-resolution", factor=2)
    found = open_run(run).open(str(path))
    assert found.shape == (6, 320, 260) and found.voxel_size_nm == SIZE


def test_they_are_probed(tmp_path):
    synthetic = "synthetic:shape=12x96x96,seed=1"
    told = CliRunner().invoke(
        app,
        [
            *("probe", str(restored(tmp_path / "run")), "--data", synthetic, "--labels", "classes"),
            *("--fit-z", "0:4", "--score-z", "7:11", "--json", str(tmp_path / "probe.json")),
        ],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    assert "untrained" in told.output and (tmp_path / "probe.json").exists()

"""The recipe: it learns, it resumes bit for bit, it refuses what cannot run."""

import json
import math
import os
import re
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path

import em_models
import numpy as np
import pytest
import torch
from em_data import new_store, open_volume
from em_data.geometry import Box
from em_train.cli import app
from em_train.engine import checkpoint, launch
from em_train.engine import config as configuration
from em_train.engine.config import Layer, resolve
from em_train.engine.errors import CheckpointError, ConfigError
from em_train.engine.run_folder import new_run, resumed_run
from em_train.recipes import dense_ssl, restore
from em_train.recipes import segment as recipe
from em_train.segment import networks
from PIL import Image
from typer.testing import CliRunner

SYNTHETIC = "synthetic:shape=10x80x80,seed=1"
LARGER = {"volumes": ["synthetic:shape=10x120x120,seed=1"], "labels": ["membrane=classes@1"]}
SMALL = {
    "data": {
        "volumes": [SYNTHETIC],
        "labels": ["membrane=classes@1", "mitochondria=classes@2"],
        "batch_size": 2,
        "patch_vx": 32,
        "depth_vx": 2,
        "samples_per_epoch": 4,
    },
    "model": {
        "unet": {"channels": [4, 6, 8]},
        "unet3d": {"channels": [3, 4], "kernels_z": [1, 3], "strides_z": [1]},
        "hrnet": {"channels": [4, 6], "modules": 2},
        "timm_hrnet": {"width": 8, "stem_stride": 4},
    },
    "optim": {"warmup_steps": 1},
    "run": {"steps": 4, "log_every": 1, "picture_every": 2, "checkpoint_every": 2, "device": "cpu"},
}


def small(**groups):
    return resolve(recipe.Config, [Layer("small", SMALL), Layer("test", groups)])


def start(path, config):
    return recipe.run(config, new_run(path, config, "segment"))


def measured(path):
    """The rows of a run without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    clock = ("patches_per_s", "waiting")
    return [{key: row[key] for key in row if key not in clock} for row in rows]


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    """A store of bright discs on noise, with labels on slices 2 to 9 of 12."""
    path = tmp_path_factory.mktemp("data") / "discs.zarr"
    rng = np.random.default_rng(0)
    y, x = np.indices((96, 96))
    discs = np.zeros((12, 96, 96), np.uint8)
    for z in range(12):
        for cy, cx in rng.integers(10, 86, (6, 2)):
            discs[z][(y - cy) ** 2 + (x - cx) ** 2 < 64] = 1
    raw = (90 + 60 * discs + rng.normal(0, 12, discs.shape)).clip(0, 255).astype(np.uint8)
    size = (40.0, 8.0, 8.0)
    with new_store(path) as store:
        store.add_image(raw.shape, np.uint8, size).write(Box((0, 0, 0), raw.shape), raw)
        part = store.add_image((8, 96, 96), np.uint8, size, origin_nm=(80, 0, 0), label="discs")
        part.write(Box((0, 0, 0), (8, 96, 96)), discs[2:10])
    return path


def test_a_run_leaves_everything_a_person_looks_at(tmp_path):
    path = tmp_path / "run"
    assert start(path, small())
    rows = measured(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]
    for name in ("step-000002.png", "step-000004.png", "best.png", "worst.png"):
        assert (path / "images" / name).stat().st_size > 1000
    report = (path / "report.html").read_text()
    for expected in ("mitochondria", "data:image/png;base64,", "<polyline", "optim.lr", "Dice"):
        assert expected in report
    stored = configuration.file_layer(path / "config.json", "segment")
    assert resolve(recipe.Config, [stored]) == small()
    scores = json.loads((path / "scores.json").read_text())
    best = min(
        (row for row in rows if "validation_loss" in row), key=lambda r: r["validation_loss"]
    )
    assert scores["best_step"] == best["step"]
    assert scores["validation_loss"] == pytest.approx(best["validation_loss"], rel=1e-5)
    network = em_models.load(path / "weights" / "network")
    state = checkpoint.read((path / "checkpoints" / "best").resolve())
    key = "encoder.0.conv1.weight"
    assert torch.equal(network.get_parameter(key), state["average"][f"module.network.{key}"])
    classes = json.loads((path / "classes.json").read_text())
    assert classes["names"] == ["membrane", "mitochondria"]
    assert all(0 < threshold <= 1 for threshold in classes["thresholds"])


def test_it_learns(tmp_path, disks):
    config = small(
        data={
            "volumes": [str(disks)],
            "labels": ["discs"],
            "samples_per_epoch": 120,
            "batch_size": 4,
        },
        model={"unet": {"channels": [8, 12, 16]}},
        optim={"lr": 1e-2},
        run={"steps": 60, "log_every": 20, "picture_every": 100, "checkpoint_every": 100},
    )
    assert start(tmp_path / "run", config)
    (found,) = json.loads((tmp_path / "run" / "scores.json").read_text())["classes"]
    assert found["dice"] > 0.95
    assert list(found["slices"]) == ["z 8", "z 9"]  # the last fifth of what is labelled


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"kind": "softmax", "focal": 2.0}, "model": {"unet": {"deep_supervision": True}}},
        {"model": {"unet": {"slices": 3}}, "loss": {"boundary_weight": 3.0}},
        {"model": {"kind": "unet3d"}},
        {"model": {"kind": "hrnet", "hrnet": {"slices": 3}}, "optim": {"layer_decay": 0.5}},
        {"model": {"kind": "timm-hrnet"}, "optim": {"layer_decay": 0.5}},
        {
            "data": {"augment": "ss-tem", "patch_vx": 16} | LARGER,
            "optim": {"schedule": "plateau"},
        },
    ],
    ids=["softmax", "2.5D", "3D", "hrnet", "timm-hrnet", "augmented"],
)
def test_every_kind_runs(tmp_path, settings):
    settings = {"run": {"steps": 2}, **settings}
    assert start(tmp_path / "run", small(**settings))
    rows = measured(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("kind", ["unet", "hrnet"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, request, kind):
    init = str(request.getfixturevalue("restorer")) if kind == "hrnet" else None
    config = small(model={"kind": kind}, run={"init": init})
    assert start(tmp_path / "whole", config)

    improves, seen = recipe.Best.improves, []

    def interrupt(self, value):
        seen.append(value)
        if len(seen) == 1:  # after step 2, with a best checkpoint
            os.kill(os.getpid(), signal.SIGTERM)
        return improves(self, value)

    monkeypatch.setattr(recipe.Best, "improves", interrupt)
    broken = tmp_path / "broken"
    assert not start(broken, config)
    monkeypatch.undo()
    assert recipe.run(config, resumed_run(broken, config, "segment"), resume=True)
    assert measured(broken) == measured(tmp_path / "whole")
    a, b = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "broken"))
    for part in ("networks", "average"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part]), part
    for name in ("scores.json", "images/worst.png"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_stops_early_and_keeps_the_best(tmp_path, monkeypatch):
    """Losses that only rise: the run ends after two, with the weights of the first."""
    losses = iter([1.0, 2.0, 3.0, 4.0])
    measure = recipe.score_windows

    def rising(*arguments, alone=False):
        found = measure(*arguments, alone=alone)
        return (
            found
            if alone
            else type(found)(loss=next(losses), histograms=found.histograms, dice=found.dice)
        )

    monkeypatch.setattr(recipe, "score_windows", rising)
    config = small(run={"steps": 100, "stale_after": 2})
    assert start(tmp_path / "run", config)
    assert measured(tmp_path / "run")[-1]["step"] == 6
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["best_step"] == 2
    # Resuming it does nothing more.
    again = resumed_run(tmp_path / "run", config, "segment")
    assert recipe.run(config, again, resume=True)
    assert measured(tmp_path / "run")[-1]["step"] == 6


def test_slices_are_spread_over_what_is_labelled_and_not_held_out(disks):
    config = small(data={"volumes": [str(disks)], "labels": ["discs"]})
    volumes, labels, classes = recipe.open_data(config.data)
    crop = recipe.crop_of(volumes, config.data, config.patch_vx)
    whole = recipe.split_data(volumes, labels, config.data, crop)
    assert recipe.planes_of(whole.training[0], volumes[0], crop) == [2, 3, 4, 5, 6]  # 7 is the gap
    for count, planes in ((1, [4]), (2, [3, 5]), (5, [2, 3, 4, 5, 6])):
        few = small(data={"volumes": [str(disks)], "labels": ["discs"], "slices": count})
        split = recipe.split_data(volumes, labels, few.data, crop)
        assert recipe.planes_of(split.training[0], volumes[0], crop) == planes
        loader = recipe.make_loader(volumes, labels, classes, split, few.data, crop, seed=0)
        drawn = {key.box.origin_vx[0] for key in map(loader.sampler, loader.keys(0) * 20)}
        assert drawn <= set(planes)
    few = small(data={"volumes": [str(disks)], "labels": ["discs"], "slices": 6})
    with pytest.raises(ValueError, match="asks for 6 labelled slices .* has 5"):
        recipe.split_data(volumes, labels, few.data, crop)


def test_several_volumes_with_labels_of_the_same_name(tmp_path, disks):
    config = small(
        data={"volumes": [str(disks)] * 2, "labels": ["discs"], "augment": "none"},
        run={"steps": 2},
    )
    assert start(tmp_path / "run", config)
    found = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert found["slices"] == ["volume 1, z 8", "volume 1, z 9", "volume 2, z 8", "volume 2, z 9"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A dense-ssl run of one step."""
    path = tmp_path_factory.mktemp("init") / "ssl"
    config = resolve(
        dense_ssl.Config,
        [
            Layer(
                "test",
                {
                    "data": {
                        "volumes": ["synthetic:shape=10x104x104,seed=1"],
                        "batch_size": 2,
                        "stack": {"size_vx": 65},
                        "samples_per_epoch": 4,
                    },
                    "model": {
                        "encoder": {"channels": [4] * 6, "embedding": 5, "classes": 10, "pools": []}
                    },
                    "loss": {"classes_at_least": 8, "feature_weight": 0},
                    "run": {"steps": 1, "device": "cpu"},
                },
            )
        ],
    )
    assert dense_ssl.run(config, new_run(path, config, "dense-ssl"))
    return path


@pytest.mark.parametrize("frozen", [True, False])
def test_the_encoder_of_a_dense_ssl_run_guides(tmp_path, pretrained, frozen):
    layers = [Layer("small", SMALL), Layer("test", {"data": {"patch_vx": 64}})]
    data = resolve(recipe.Config, layers).data
    more = {"run": {"init": str(pretrained)}, "model": {"freeze_guide": frozen}}
    layers += [Layer("--init", networks.guide_of(str(pretrained), data)), Layer("test", more)]
    config = resolve(
        recipe.Config,
        [*layers, Layer("steps", {"optim": {"layer_decay": 0.5}, "run": {"steps": 2}})],
    )
    assert config.model.unet.guide.embedding == 5
    assert start(tmp_path / "run", config)
    stored = configuration.file_layer(tmp_path / "run" / "config.json", "segment")
    assert resolve(recipe.Config, [stored]) == config
    guide = em_models.load(tmp_path / "run" / "weights" / "network").guide.state_dict()
    own = em_models.load(pretrained / "weights" / "encoder").state_dict()
    assert all(torch.equal(guide[key], own[key]) for key in own) == frozen
    rehearsed = recipe.rehearse(config, torch.device("cpu"))[0]["network"].guide
    assert all(torch.equal(value, own[key]) for key, value in rehearsed.state_dict().items())
    assert all(p.requires_grad != frozen for p in rehearsed.parameters())
    # The run can be the start of another.
    again = resolve(
        recipe.Config, [*layers, Layer("init", {"run": {"init": str(tmp_path / "run")}})]
    )
    found = networks.make_networks(again.model, again.loss, recipe.open_data(again.data)[2])
    networks.initialise(found, again.model, Path(again.run.init))
    state = checkpoint.load(tmp_path / "run" / "checkpoints", best=True)["average"]
    key = "network.heads.0.2.weight"
    assert torch.equal(found.state_dict()[key], state[f"module.{key}"])


def test_a_series_that_was_stopped_goes_on_with_its_guide(tmp_path, disks, pretrained, monkeypatch):
    out = tmp_path / "series"
    arguments = [
        *("segment", "--data", str(disks), "--labels", "discs", "--slices", "1,2"),
        *("--init", str(pretrained), "--out", str(out), "--set", "data.patch_vx=64"),
        *("--set", "data.batch_size=2", "--set", "run.steps=1", "--set", "run.device=cpu"),
    ]
    monkeypatch.setattr(sys, "argv", ["emtrain", *arguments])
    with monkeypatch.context() as stopped:
        stopped.setattr(launch, "work", lambda *_, **__: False)
        told = CliRunner().invoke(app, arguments, catch_exceptions=False)
    again = [*arguments, "--resume"]
    assert told.exit_code == 75
    assert f"go on with: {shlex.join(['emtrain', *again])}\n" in told.output
    # As if the first run had been done.
    score = {"class": "discs", "dice": 0.5, "dice_interval": [0.4, 0.6], "iou": 0.3}
    (out / "slices-1").mkdir(parents=True)
    scores = {"classes": [score | {"average_precision": 0.7}]}
    (out / "slices-1" / "scores.json").write_text(json.dumps(scores))
    told = CliRunner().invoke(app, again, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    stored = json.loads((out / "slices-2" / "config.json").read_text())
    assert stored["model"]["unet"]["guide"]["embedding"] == 5
    assert (out / "series.json").exists()
    # Once more it needs nothing that was typed; other settings are not put beside these.
    short = ["segment", "--slices", "1,2", "--out", str(out), "--resume"]
    assert CliRunner().invoke(app, short, catch_exceptions=False).exit_code == 0
    for other in (["--set", "run.steps=2"], ["--init", str(tmp_path)]):
        told = CliRunner().invoke(app, [*short, *other])
        assert "slices-2 was started with another configuration" in str(told.exception), told.output


def test_a_guide_without_room_or_to_freeze_without_one_is_refused(tmp_path, pretrained):
    with pytest.raises(CheckpointError, match=r"model\.unet\.guide has no place"):
        start(tmp_path / "a", small(run={"init": str(pretrained)}))
    with pytest.raises(ValueError, match="there is no guide"):
        start(tmp_path / "b", small(model={"freeze_guide": True}))


def test_the_guide_sees_pixels_of_its_own_size(tmp_path, disks, pretrained):
    data = small(data={"volumes": [str(disks)]}).data  # pixels of 8 nm, as the encoder's
    assert networks.guide_of(str(pretrained), data)["model"]["unet"]["guide_scale"] == 1
    coarse = tmp_path / "ssl"
    (coarse / "weights").mkdir(parents=True)
    (coarse / "weights" / "encoder").symlink_to(pretrained / "weights" / "encoder")
    stored = json.loads((pretrained / "config.json").read_text())
    stored["data"]["pixel_nm"] = 18.0
    (coarse / "config.json").write_text(json.dumps(stored))
    assert networks.guide_of(str(coarse), data)["model"]["unet"]["guide_scale"] == 2
    assert networks.guide_of(str(tmp_path), data) == {}


@pytest.fixture(scope="module")
def restorer(tmp_path_factory, disks):
    """A restore run of one step, with a discriminator: an HRNet."""
    path = tmp_path_factory.mktemp("init") / "restorer"
    settings = {
        "data": {"volumes": [str(disks)], "patch_vx": 32, "batch_size": 2, "checked_crops": 2},
        "model": {
            "kind": "hrnet",
            "hrnet": {"channels": [4, 6], "modules": 2},
            "discriminator": {"channels": 4, "layers": 1},
        },
        "loss": {"adversary": 0.01},
        "run": {"steps": 1, "device": "cpu"},
    }
    config = resolve(restore.Config, [Layer("test", settings)])
    assert restore.run(config, new_run(path, config, "restore"))
    return path


def test_the_command_starts_from_a_restorer(tmp_path, disks, restorer):
    def told(*more, out="run"):
        typed = [
            *("segment", "--data", str(disks), "--labels", "discs", "--init", str(restorer)),
            *("--set", "data.patch_vx=32", "--set", "data.batch_size=2", "--set", "run.steps=2"),
            *("--set", "run.device=cpu", "--set", "optim.lr=1e-30", *more),
        ]
        return CliRunner().invoke(app, [*typed, "--out", str(tmp_path / out)])

    shown = told("--show-config")
    assert shown.exit_code == 0 and not (tmp_path / "run").exists()
    assert re.search(r"model\.kind +hrnet ", shown.output), shown.output
    assert re.search(r"model\.hrnet\.modules +2 ", shown.output)
    assert told().exit_code == 0
    parameters = [
        dict(em_models.load(path / "weights" / "network").named_parameters())
        for path in (restorer, tmp_path / "run")
    ]
    below = [name for name in parameters[0] if not name.startswith("head.")]
    assert len(below) > 20 and parameters[0].keys() == parameters[1].keys()
    assert all(torch.allclose(parameters[0][name], parameters[1][name]) for name in below)
    config = resolve(
        recipe.Config, [configuration.file_layer(tmp_path / "run" / "config.json", "segment")]
    )
    rehearsed = dict(recipe.rehearse(config, torch.device("cpu"))[0]["network"].named_parameters())
    assert all(torch.equal(parameters[0][name], rehearsed[name]) for name in below)
    # It goes on, also where the run that it began with is gone.
    gone = replace(config, run=replace(config.run, init=str(tmp_path / "gone")))
    assert recipe.run(gone, resumed_run(tmp_path / "run", gone, "segment"), resume=True)
    # What was typed must be its network.
    for setting, said in (
        ("model.kind=unet", "holds a network of kind hrnet, and model.kind is unet"),
        ("model.hrnet.modules=3", "modules: 2 ≠ 3"),
        ("model.take=encoder", "an hrnet has no encoder"),
    ):
        refused = told("--set", setting, out="refused")
        assert refused.exit_code == 1 and said in str(refused.exception)
        assert not (tmp_path / "refused").exists()


def test_what_cannot_run_is_refused_by_name(disks):
    store = {"volumes": [str(disks)], "labels": ["discs"]}
    for groups, message in (
        ({"data": {"volumes": []}}, r"data\.volumes is empty"),
        ({"data": {"labels": []}}, r"data\.labels is empty"),
        ({"data": {"volumes": [SYNTHETIC, f"{SYNTHETIC},voxel_nm=17.6x8x9"]}}, "8 to 9 nm along x"),
        ({"data": store | {"split": {"z": (20, 30)}}}, "20:30 leave the volume"),
        ({"data": store | {"split": {"z": (10, 12)}}}, "nothing that is held out .* is labelled"),
        ({"data": {"labels": ["glia=classes@99"]}}, "glia|classes|99"),
        ({"loss": {"kind": "softmax"}, "data": store}, r"data\.exclusive=true"),
        ({"data": {"augment": "ss-tem"}}, "augment=ss-tem cuts 1 × 112 × 112"),
        ({"loss": {"class_weights": [1.0]}}, "1 numbers for 2 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.check(small(**groups))
    for groups, message in (
        (
            {"data": {"patch_vx": 33}},
            "data.patch_vx is 33; wanted a multiple of 4, for instance 36",
        ),
        ({"model": {"kind": "unet3d"}, "data": {"slices": 2}}, "a 3D network cannot"),
        ({"data": {"balance": 0}}, "data.balance"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(**groups)


def test_a_class_that_is_not_held_out_is_named(tmp_path):
    raw = np.random.default_rng(0).integers(0, 255, (10, 64, 64)).astype(np.uint8)
    rare = np.zeros_like(raw)
    rare[:3, 10:20, 10:20] = 1
    for name, voxels in (("raw", raw), ("rare", rare), ("late", rare[::-1])):
        np.save(tmp_path / f"{name}.npy", voxels)
    with pytest.raises(ValueError, match="'rare' has no voxel in the held-out slices .*z 8, z 9"):
        recipe.check(
            small(
                data={
                    "volumes": [str(tmp_path / "raw.npy")],
                    "labels": [str(tmp_path / "rare.npy")],
                }
            )
        )
    with pytest.raises(ValueError, match=r"'late' has no voxel"):
        late = {"labels": [str(tmp_path / "late.npy")], "split": {"z": (4, 10)}}
        recipe.check(small(data={"volumes": [str(tmp_path / "raw.npy")], **late}))


def test_labels_of_another_voxel_size_or_place_are_refused(tmp_path, disks):
    voxels = np.ones((8, 96, 96), np.uint8)
    for name, size, origin, message in (
        ("size", (40.0, 4.0, 4.0), (0.0, 0.0, 0.0), "have voxels of 40 × 4 × 4 nm"),
        ("grid", (40.0, 8.0, 8.0), (0.0, 4.0, 0.0), "off its grid on y"),
        ("place", (40.0, 8.0, 8.0), (4000.0, 0.0, 0.0), "does not overlap"),
    ):
        path = tmp_path / f"{name}.zarr"
        with new_store(path) as store:
            image = store.add_image(voxels.shape, np.uint8, size, origin_nm=origin)
            image.write(Box((0, 0, 0), voxels.shape), voxels)
        with pytest.raises(ValueError, match=message):
            recipe.check(small(data={"volumes": [str(disks)], "labels": [str(path)]}))


def test_patches_without_a_labelled_pixel_change_nothing(disks):
    """A value of the labels that says not labelled: such pixels have no gradient."""
    config = small(data={"volumes": [str(disks)], "labels": ["discs"], "ignore": 9})
    networks, loader, *_ = recipe.rehearse(config, torch.device("cpu"))
    classes = recipe.open_data(config.data)[2]
    batch = next(iter(loader.batches(0, 1)))
    batch.labels.fill_(9)
    terms = recipe.losses(networks, batch, classes, config)
    terms["loss"].backward()
    assert terms["loss"].item() == terms["labelled"].item() == 0
    assert not any(p.grad.any() for p in networks.parameters() if p.grad is not None)


def test_the_command(tmp_path, disks):
    out = tmp_path / "series"
    settings = [
        "data.patch_vx=32",
        "data.samples_per_epoch=4",
        "data.batch_size=2",
        "run.steps=2",
    ]
    settings += ["model.unet.channels=[4, 6]", "run.device=cpu"]
    options = [part for setting in settings for part in ("--set", setting)]
    told = CliRunner().invoke(
        app,
        [
            *("segment", "--data", str(disks), "--labels", "discs", "--val-z", "8:10"),
            *("--slices", "1,2", "--out", str(out), *options),
        ],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    rows = json.loads((out / "series.json").read_text())
    assert [(row["slices"], row["class"]) for row in rows] == [(1, "discs"), (2, "discs")]
    stored = json.loads((out / "slices-2" / "config.json").read_text())["data"]
    assert (stored["slices"], stored["split"]["z"]) == (2, [8, 10])
    assert stored["volumes"] == [str(open_volume(disks).source)]
    with pytest.raises(FileExistsError, match="is not empty"):
        CliRunner().invoke(
            app,
            ["segment", "--slices", "1,2", "--out", str(out), "--data", str(disks), *options],
            catch_exceptions=False,
        )


def of_particles(path, **groups):
    own = {
        "volumes": [f"images:{path / 'images'}"],
        "labels": [f"particles=images:{path / 'masks'}?match={{name}}_mask.png"],
        "held_images": [4, 6],
    }
    return small(**{**groups, "data": own | groups.get("data", {})})


@pytest.mark.parametrize("memory_gib", [1, 1e-6])  # held, or read when it is needed
def test_it_learns_from_a_collection_of_images(tmp_path, particles, memory_gib):
    config = of_particles(
        particles,
        data={"samples_per_epoch": 120, "batch_size": 4, "memory_gib": memory_gib},
        model={"unet": {"channels": [8, 12, 16]}},
        optim={"lr": 1e-2},
        run={"steps": 60, "log_every": 20, "picture_every": 30, "checkpoint_every": 100},
    )
    assert start(tmp_path / "run", config)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    (found,) = scores["classes"]
    assert found["dice"] > 0.9
    assert list(found["slices"]) == scores["slices"] == ["4", "5"]  # 5 is smaller than a patch
    assert (tmp_path / "run" / "images" / "step-000030.png").exists()
    assert not (tmp_path / "run" / "grey.json").exists()  # each image has a range of its own


def test_images_resume_bit_for_bit(tmp_path, particles, monkeypatch):
    config = of_particles(particles)
    assert start(tmp_path / "whole", config)
    states = recipe.States.save

    def interrupt(self, step, **more):
        states(self, step, **more)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recipe.States, "save", interrupt)
    broken = tmp_path / "broken"
    assert not start(broken, config)
    monkeypatch.undo()
    assert recipe.run(config, resumed_run(broken, config, "segment"), resume=True)
    assert measured(broken) == measured(tmp_path / "whole")
    for name in ("scores.json", "images/worst.png"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_image_or_label_is_noticed_when_a_run_is_resumed(tmp_path, draw_particles):
    for name in ("images/1.png", "images/4.png", "masks/1_mask.png", "masks/4_mask.png"):
        path = draw_particles(tmp_path / name.replace("/", "-"))
        config = of_particles(path, run={"steps": 1})
        assert start(path / "run", config)
        flipped = np.asarray(Image.open(path / name))[::-1]
        Image.fromarray(flipped.copy()).save(path / name)
        with pytest.raises(CheckpointError, match="was trained on other data: then .*4 images"):
            recipe.run(config, resumed_run(path / "run", config, "segment"), resume=True)


def test_images_are_trained_on_or_held_out_as_a_whole(particles):
    for given, training, held in (
        ({}, [0, 1, 2, 3], [4, 5]),
        ({"slices": 2}, [1, 3], [4, 5]),
        ({"held_images": 1 / 3, "patch_vx": 24}, [0, 2, 3, 5], [1, 4]),
    ):
        config = of_particles(particles, data=given)
        images, labels, classes = recipe.open_data(config.data)
        crop = recipe.crop_of(images, config.data, config.patch_vx)
        split = recipe.split_data(images, labels, config.data, crop)
        assert (split.training.tolist(), split.held.tolist()) == (training, held)
        loader = recipe.make_loader(images, labels, classes, split, config.data, crop, seed=0)
        drawn = {loader.volumes[loader.sampler(key).volume].source for key in loader.keys(0) * 30}
        assert drawn <= {images.path(number) for number in training}
        windows = recipe.held_out(loader, images, labels, classes, split, config)
        assert [window.where for window in windows] == [str(number) for number in held]


@pytest.mark.parametrize(
    "labels",
    [
        ["borders:images:MASKS"],
        ["particles=images:MASKS", "border=borders:images:MASKS"],
        ["one=images:MASKS@301", "two=images:MASKS@302"],
    ],
    ids=["borders", "beside", "values"],
)
def test_every_kind_of_labels_of_images_runs(tmp_path, particles, labels):
    masks = f"{particles / 'masks'}?match={{name}}_mask.png"
    labels = [one.replace("MASKS", masks) for one in labels]
    config = of_particles(particles, data={"labels": labels}, run={"steps": 2})
    assert start(tmp_path / "run", config)
    rows = measured(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert recipe.rehearse(config, torch.device("cpu"))


@pytest.mark.parametrize("augment", ["none", "ss-tem", "fib-sem"])
def test_images_are_augmented_without_a_voxel_size(tmp_path, draw_particles, augment):
    path = draw_particles(tmp_path / "large", sizes=[(140, 150)] * 3)
    data = {"augment": augment, "held_images": 1}
    config = of_particles(path, data=data, run={"steps": 2})
    assert start(tmp_path / "run", config)
    assert all(math.isfinite(row["loss"]) for row in measured(tmp_path / "run"))


def test_images_that_cannot_be_learned_from_are_refused_by_name(
    tmp_path, particles, disks, draw_particles
):
    images, masks = f"images:{particles / 'images'}", f"images:{particles / 'masks'}"
    for groups, message in (
        ({"data": {"volumes": [images, str(disks)]}}, "learned from alone; beside it are given"),
        ({"data": {"labels": [str(particles / "masks")]}}, "give --labels masks=images:FOLDER"),
        ({"data": {"labels": [f"a={masks}", f"a={masks}"]}}, "given 2 times for one collection"),
        ({"data": {"labels": [f"particles={masks}"]}}, r"has none for 6 of 6 images .*\?match="),
        ({"data": {"split": {"z": (1, 2)}}}, "hold out some with --val-images"),
        ({"data": {"held_images": 0, "patch_vx": 24}}, "no labelled slice or image is held out"),
        ({"data": {"held_images": 7}}, "7 of 6 images are held out"),
        ({"data": {"slices": 9}}, "asks for 9 labelled images .* has 4 besides"),
        ({"data": {"held_images": 1}}, r"1 of 5 .* 32 × 32 .*: 5 \(24 × 30\); .*\?least_px=32"),
        ({"model": {"unet": {"slices": 3}}}, "a patch has 3 slices, and images have one"),
        ({"model": {"kind": "unet3d"}}, "a patch has 2 slices, and images have one"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.check(of_particles(particles, **groups))
    empty = draw_particles(tmp_path / "empty")
    for number in (4, 5):
        mask = empty / f"masks/{number}_mask.png"
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    with pytest.raises(ValueError, match=r"no voxel in the held-out images \(4, 5\).*--val-images"):
        recipe.check(of_particles(empty))


def test_the_command_takes_a_collection(tmp_path, particles):
    settings = ["data.patch_vx=16", "data.samples_per_epoch=4", "data.batch_size=2", "run.steps=2"]
    settings += ["model.unet.channels=[4, 6]", "run.device=cpu"]
    told = CliRunner().invoke(
        app,
        [
            *("segment", "--data", f"images:{particles / 'images'}?take=1:6", "--out"),
            *(str(tmp_path / "run"), "--val-images", "2:4", "--slices", "2", "--labels"),
            f"particles=images:{particles / 'masks'}?match={{name}}_mask.png",
            *(part for setting in settings for part in ("--set", setting)),
        ],
        catch_exceptions=False,
    )
    assert told.exit_code == 0, told.output
    assert "2 images for training, 2 held out" in told.output
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["slices"] == ["3", "4"]
    for wrong in ("some", "2:x"):
        told = CliRunner().invoke(app, ["segment", "--data", "a", "--val-images", wrong])
        assert f"--val-images is {wrong!r}" in str(told.exception)


def test_real_particles(tmp_path, real_data):
    """Numbers of 16 bits, images of different sizes, names of hexadecimal digits."""
    emps = real_data / "emps_train"
    if not emps.is_dir():
        pytest.skip(f"no images of particles at {emps}")
    config = small(
        data={
            "volumes": [f"images:{emps / 'images'}?take=0:12"],
            "labels": [f"particles=images:{emps / 'instances'}"],
            "held_images": [10, 12],
            "patch_vx": 128,
        },
        run={"steps": 2},
    )
    assert start(tmp_path / "run", config)
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert len(scores["slices"]) == 2 and 0 < scores["classes"][0]["average_precision"] < 1

"""The recipe: it runs, it resumes bit for bit, it refuses what cannot run."""

import dataclasses
import json
import math
import os
import signal
from types import SimpleNamespace

import em_models
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from em_data import BlockSampler, Box, GreyRange, Key, augment, new_store, open_volume
from em_data.loader import Batch
from em_losses import entropy_sums, mean_entropy
from em_train.dense import loss
from em_train.dense.data import make_loader
from em_train.dense.report import agreement, hard_codes, preview
from em_train.engine import checkpoint
from em_train.engine import config as configuration
from em_train.engine.config import Layer, resolve
from em_train.engine.errors import ConfigError
from em_train.engine.run_folder import new_run, resumed_run
from em_train.judge.codes import nmi
from em_train.look.pictures import GAP_PX, TITLE_PX
from em_train.recipes import dense_ssl as recipe
from PIL import Image
from torch.optim.swa_utils import AveragedModel

SMALL = {
    "data": {
        "volumes": ["synthetic:shape=8x96x96,seed=1"],
        "batch_size": 2,
        "stack": {"size_vx": 65},
    },
    "model": {"encoder": {"classes": 10, "pools": []}, "predictor_width": 8},
    "loss": {"classes_at_least": 8},
    "optim": {"warmup_steps": 1},
    "run": {"steps": 4, "log_every": 1, "picture_every": 2, "checkpoint_every": 2, "device": "cpu"},
}


def small(**groups):
    return resolve(recipe.Config, [Layer("small", SMALL), Layer("test", groups)])


def start(path, config):
    return recipe.run(config, new_run(path, config, "dense-ssl"))


def measured(path):
    """The rows of a run without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: row[key] for key in row if key not in ("slices_per_s", "waiting")} for row in rows
    ]


def test_a_run_leaves_everything_a_person_looks_at(tmp_path):
    path = tmp_path / "run"
    assert start(path, small())
    rows = measured(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for name in ("step-000002.png", "step-000004.png", "classes.png"):
        assert (path / "images" / name).stat().st_size > 1000
    report = (path / "report.html").read_text()
    for expected in (
        "NMI",
        "data:image/png;base64,",
        "<polyline",
        "optim.lr",
        "synthetic:shape=8x96",
    ):
        assert expected in report
    assert (
        resolve(recipe.Config, [configuration.file_layer(path / "config.json", "dense-ssl")])
        == small()
    )
    trained, reclustered = (em_models.load(path / "weights" / n) for n in ("trained", "encoder"))
    state = checkpoint.load(path / "checkpoints")
    key = "module.encoder.prototypes"
    assert torch.equal(trained.prototypes, state["average"][key])
    assert torch.equal(trained.convolutions[0].weight, reclustered.convolutions[0].weight)
    assert not torch.equal(trained.embed.weight, reclustered.embed.weight), "stretched by texture"
    assert not torch.equal(trained.prototypes, reclustered.prototypes) and reclustered.offset.any()
    assert not torch.equal(state["average"][key], state["networks"]["encoder.prototypes"])


@pytest.mark.parametrize(("backbone", "size_vx"), [("convnext_atto", 76), ("resnet18", 79)])
def test_a_backbone_of_timm_trains_to_its_report(tmp_path, backbone, size_vx):
    """One has an even receptive field, so that it loses one more pixel behind than before."""
    timm = {"backbone": backbone, "max_stride": 4, "classes": 10}
    config = small(
        data={"stack": {"size_vx": size_vx}},
        model={"kind": "timm", "timm": timm},
        run={"steps": 2},
    )
    path = tmp_path / "run"
    assert start(path, config)
    assert (path / "report.html").exists() and (path / "images" / "proof.png").exists()
    with Image.open(path / "images" / "classes.png") as picture:
        side = 96 - recipe.geometry_of(config.model).trimmed
        assert picture.height == side + TITLE_PX


@pytest.mark.parametrize("taught", [{}, {"target": "ema"}, {"feature_target": "average"}])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, taught, monkeypatch):
    config = small(loss=taught)
    assert start(tmp_path / "whole", config)

    update, seen = AveragedModel.update_parameters, []

    def interrupt(self, model):
        update(self, model)
        seen.append(0)
        if len(seen) == 3:  # between two checkpoints
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(AveragedModel, "update_parameters", interrupt)
    broken = tmp_path / "broken"
    assert not start(broken, config)
    monkeypatch.undo()
    assert checkpoint.load(broken / "checkpoints")["step"] == 3
    assert recipe.run(config, resumed_run(broken, config, "dense-ssl"), resume=True)

    assert measured(broken) == measured(tmp_path / "whole")
    a, b = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "broken"))
    for part in ("networks", "average"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part]), part
    for name in ("classes.png", "step-000004.png"):
        whole, resumed = (tmp_path / n / "images" / name for n in ("whole", "broken"))
        assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(("every", "checkpointed"), [(2, 2), (100, 0)])
def test_a_kill_at_any_time_loses_nothing_and_repeats_no_row(
    tmp_path, monkeypatch, every, checkpointed
):
    config = small(run={"checkpoint_every": every})
    path = tmp_path / "run"
    update, seen = AveragedModel.update_parameters, []

    def die(self, model):
        seen.append(0)
        if len(seen) == 4:
            raise MemoryError("as if killed")
        update(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", die)
    with pytest.raises(MemoryError):
        start(path, config)
    monkeypatch.undo()
    assert [row["step"] for row in measured(path)] == [1, 2, 3]
    assert checkpoint.load(path / "checkpoints")["step"] == checkpointed
    assert recipe.run(config, resumed_run(path, config, "dense-ssl"), resume=True)
    assert [row["step"] for row in measured(path)] == [1, 2, 3, 4]


def test_loss_is_made_of_its_parts_and_learns(tmp_path):
    config = small(optim={"warmup_steps": 3}, run={"steps": 30, "picture_every": 100})
    start(tmp_path / "run", config)
    rows = measured(tmp_path / "run")
    for row in rows:
        floor = max(0, math.log(8) - math.log(row["mean_classes"]))
        predicted = row["pred"] + row["view"] + row["contrast_context"] + row["contrast_view"]
        expected = predicted / 2 + 4 * row["feature"] + 5 * floor + row["cond"] / 10
        assert row["loss"] == pytest.approx(expected, rel=1e-4)
        assert row["information"] == pytest.approx(
            math.log(row["mean_classes"]) - row["pred"], abs=1e-4
        )
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last < first - 0.05


def symmetric_networks(config):
    """Networks that cannot tell the eight sides of a patch apart and predict the mean context."""
    torch.manual_seed(0)
    networks = recipe.make_networks(config)
    encoder, predictor = networks["encoder"], networks["predictor"]
    for convolution in encoder.convolutions:
        kernel = convolution.weight.data
        turned = [augment.transform(kernel, [k] * len(kernel)) for k in range(8)]
        convolution.weight.data = torch.stack(turned).mean(0)
    encoder(torch.rand(8, 1, 65, 65))  # the norms see data
    torch.nn.init.zeros_(predictor.network[-1].weight)
    torch.nn.init.zeros_(predictor.network[-1].bias)
    return networks.eval()


def batch_of(slices):
    """A batch of 8 stacks from slices (8, Z, Y, X) of bytes."""
    return Batch(
        raw=slices,
        scale=torch.full((8,), 1 / 255),
        shift=torch.zeros(8),
        voxel_size_nm=[None] * 8,
        origin_nm=torch.zeros(8, 3),
        keys=[Key(0, n) for n in range(8)],
    )


def symmetric_config():
    encoder = {"classes": 5, "sharpness": 40}  # decided codes: a misplaced one costs
    return small(data={"photometry": 0}, model={"encoder": encoder}, loss={"classes_at_least": 2})


def test_identical_slices_are_predicted_exactly():
    """The target's codes are turned back and cropped to lie on their neighbours' codes."""
    config = symmetric_config()
    networks = symmetric_networks(config)
    slices = torch.randint(0, 255, (8, 1, 89, 89), dtype=torch.uint8).expand(-1, 3, -1, -1)
    batch = batch_of(slices)
    terms = recipe.losses(networks, None, batch, config)
    codes = networks["encoder"](batch.image()[:, 1:2, 12:-12, 12:-12]).logits[..., 2:-2, 2:-2]
    least = mean_entropy(entropy_sums(codes)).item()  # CE(p, p) = H(p)
    assert terms["pred"].item() == pytest.approx(least, abs=2e-3)


def test_the_target_is_the_slice_at_offset_zero():
    config = symmetric_config()
    networks = symmetric_networks(config)
    same = torch.randint(0, 255, (8, 1, 89, 89), dtype=torch.uint8).expand(-1, 3, -1, -1)
    least = recipe.losses(networks, None, batch_of(same), config)["pred"].item()
    worse = []
    for z in range(3):
        odd = same.clone()
        odd[:, z] = torch.randint(0, 255, (8, 89, 89), dtype=torch.uint8)
        worse.append(recipe.losses(networks, None, batch_of(odd), config)["pred"].item() - least)
    assert max(worse) == worse[1] > 1.5 * max(worse[0], worse[2])


def test_both_sides_of_the_prediction_learn_and_a_teacher_does_not():
    config = small(loss={"target": "ema"})
    networks = recipe.make_networks(config)
    slices = torch.randint(0, 255, (8, 3, 89, 89), dtype=torch.uint8)

    def gradient(teacher):
        """Of the cross-entropy alone, to the codes of the target slice."""
        seen = []
        hook = networks["encoder"].register_forward_hook(
            lambda _, __, codes: (codes.logits.retain_grad(), seen.append(codes.logits))[0]
        )
        recipe.losses(networks, teacher, batch_of(slices), config)["pred"].backward()
        hook.remove()
        return seen[0].grad.unflatten(0, (8, 4))  # two neighbours, two views

    online = gradient(None)
    assert online[:, 2].abs().sum() > 0 and online[:, :2].abs().sum() > 0
    teacher = recipe.make_networks(config)["encoder"].eval()
    taught = gradient(teacher)
    assert taught[:, 2:].abs().sum() == 0 and taught[:, :2].abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_a_learned_target_is_the_teachers_embedding_of_the_unchanged_slice():
    config = small(data={"photometry": 0}, loss={"feature_target": "average"})
    networks = symmetric_networks(config)  # a turned view is embedded like the slice itself
    teacher = symmetric_networks(config)["encoder"]
    torch.nn.init.normal_(teacher.embed.weight)
    batch = batch_of(torch.randint(0, 255, (8, 3, 65, 65), dtype=torch.uint8))
    slices = batch.image()[:, 1:2]
    with torch.no_grad():
        described = networks["describe"](networks["encoder"](slices).embedding)
        expected = F.smooth_l1_loss(described, teacher(slices).raw).item()
    terms = recipe.losses(networks, teacher, batch, config)
    assert terms["feature"].item() == pytest.approx(expected, rel=1e-4)
    terms["feature"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert "bank" not in networks, "nothing made by hand"


def test_a_rehearsal_has_the_teacher_of_the_run(monkeypatch):
    monkeypatch.setattr(recipe, "losses", lambda networks, teacher, *_: {"loss": teacher})
    for wanted, taught in (({}, False), ({"target": "ema"}, True)):
        networks, _, _, loss_of = recipe.rehearse(small(loss=wanted), torch.device("cpu"))
        teacher = loss_of(networks, None)
        assert (teacher is not None) == taught
        assert teacher is not networks["encoder"] and not (taught and teacher.training)


def test_slices_are_changed_and_turned_before_they_are_seen(monkeypatch):
    config = small(data={"photometry": 0.3})
    networks = recipe.make_networks(config)
    slices = torch.randint(0, 255, (8, 3, 89, 89), dtype=torch.uint8)
    seen = []
    hook = networks["encoder"].register_forward_hook(lambda _, images, __: seen.append(images[0]))
    recipe.losses(networks, None, batch_of(slices), config)
    changed = seen[0].unflatten(0, (8, 4))[:, :, 0]
    still = small(data={"photometry": 0})
    recipe.losses(networks, None, batch_of(slices), still)
    turned = seen[1].unflatten(0, (8, 4))[:, :, 0]
    hook.remove()
    assert not torch.allclose(changed, turned)
    image = batch_of(slices).image()[
        :, [0, 2, 1, 1], 12:-12, 12:-12
    ]  # two views of the target last
    sides = torch.stack([augment.transform(image, [k] * 8) for k in range(8)])
    found = (sides == turned).all(-1).all(-1)  # (8 sides, B, Z)
    assert (found.sum(0) == 1).all()
    side = found.int().argmax(0)  # (B, Z)
    assert (side[:, 1] == side[:, 0]).all(), "the context is turned as one"
    for one, other in ((2, 0), (3, 0), (3, 2)):
        assert (side[:, one] != side[:, other]).any()
    assert side[:, 0].unique().numel() > 2


class Oracle(torch.nn.Module):
    """An encoder that knows the truth, which it finds in the grey values."""

    def __init__(self, classes, trimmed):
        super().__init__()
        self.config = SimpleNamespace(classes=classes)
        self.geometry = em_models.Geometry(
            pitch=1, receptive_field=trimmed + 1, trimmed=trimmed, position_free=True, reason=""
        )
        self.prototypes = torch.zeros(1)

    def forward(self, image, dense):
        k, before = self.config.classes, self.geometry.margin
        codes = (image[0, 0] * (k - 1)).round().long()
        rows, columns = (slice(before, before + self.geometry.codes(n)) for n in codes.shape)
        inner = codes[rows, columns]
        return SimpleNamespace(logits=torch.nn.functional.one_hot(inner, k).permute(2, 0, 1)[None])


@pytest.mark.parametrize("trimmed", [0, 40, 41])
def test_an_oracle_agrees_with_the_truth_and_shifted_labels_are_not_used(tmp_path, trimmed):
    truth = open_volume("synthetic:shape=6x100x110,seed=2").labels("classes")[0:6, 0:100, 0:110]
    for name, origin in (("right", (0, 0, 0)), ("shifted", (40, 0, 0))):
        with new_store(tmp_path / f"{name}.zarr") as store:
            size = (40.0, 4.0, 4.0)
            raw = store.add_image(truth.shape, np.uint8, size)
            raw.write(Box((0, 0, 0), truth.shape), truth * 50)
            labels = store.add_image(
                truth.shape, np.uint64, size, origin_nm=origin, label="classes"
            )
            labels.write(Box((0, 0, 0), truth.shape), truth.astype(np.uint64) * 10**15 + 1)
    volume, grey = open_volume(tmp_path / "right.zarr"), GreyRange(0, 250)
    found = agreement(Oracle(6, trimmed), volume, grey)
    assert found["learned"] == pytest.approx(1) and 0.1 < found["grey"] < 1
    folder = new_run(tmp_path / "run", small(), "dense-ssl")
    preview(Oracle(6, trimmed), volume, grey, folder, "classes")
    sheet = np.asarray(Image.open(folder.images / "classes.png"))[TITLE_PX:]
    side = (sheet.shape[1] - 3 * GAP_PX) // 4
    panels = [sheet[:, i * (side + GAP_PX) :][:, :side] for i in range(4)]
    ids = [p.reshape(-1, 3).astype(int) @ [1, 256, 65536] for p in (panels[1], panels[3])]
    learned, true = (np.unique(one, return_inverse=True)[1] for one in ids)
    assert nmi(torch.tensor(learned), torch.tensor(true)) == pytest.approx(1), (
        "panels do not lie on each other"
    )
    shifted = open_volume(tmp_path / "shifted.zarr")
    assert agreement(Oracle(6, trimmed), shifted, grey) is None


def test_hard_codes_cover_the_slice_without_its_border():
    encoder = em_models.DenseEncoder(em_models.DenseEncoderConfig(classes=5)).eval()
    image = np.random.default_rng(0).random((3, 64, 70), np.float32)
    codes = hard_codes(encoder, image)
    margin = encoder.config.margin
    assert codes.shape == (3, 64 - 2 * margin, 70 - 2 * margin)
    alone = hard_codes(encoder, image[1:2, :60])
    np.testing.assert_array_equal(alone[0], codes[1, : 60 - 2 * margin])


def test_a_volume_larger_than_the_memory_is_read_by_blocks(tmp_path):
    changes = {"volumes": ["synthetic:shape=16x800x800,seed=1"], "memory_gib": 9 / 1024}
    config = small(data=changes, run={"steps": 2})
    (volume,) = recipe.open_volumes(config.data)
    assert isinstance(make_loader([volume], config.data, rim=12, seed=0).sampler, BlockSampler)
    assert start(tmp_path / "run", config)
    assert [row["step"] for row in measured(tmp_path / "run")] == [1, 2]
    tiny = small(data=changes | {"memory_gib": 1 / 1024})
    with pytest.raises(ValueError, match="holds no block"):
        recipe.check(tiny)


def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="take 65 or 69"):
        small(data={"stack": {"size_vx": 66}})
    with pytest.raises(ConfigError, match="classes_at_least"):
        small(loss={"classes_at_least": 11})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        recipe.check(small(data={"volumes": ["nowhere.zarr"]}))
    with pytest.raises(ValueError, match="exceeds volume"):
        recipe.check(small(data={"volumes": ["synthetic:shape=2x96x96"]}))
    np.save(tmp_path / "coarse.npy", np.zeros((8, 96, 96), np.float64))
    for wrong, message in [
        ({"data": {"volumes": [str(tmp_path / "coarse.npy")]}}, "float64"),
        ({"data": {"stack": {"offsets_z": [0], "size_vx": 65}}}, "context=0"),
        (
            {
                "data": {
                    "volumes": [
                        "synthetic:shape=8x96x96",
                        "synthetic:shape=8x96x96,voxel_nm=17.6x8x9",
                    ]
                }
            },
            "8 to 9 nm along x",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            recipe.check(small(**wrong))
    for wrong in ({"seed": 2**63}, {"seed": -1}):
        with pytest.raises(ConfigError, match="run.seed"):
            small(run=wrong)
    with pytest.raises(ConfigError, match="ema_decay"):
        small(run={"ema_decay": 1.0})
    with pytest.raises(ValueError, match="--data"):
        recipe.check(small(data={"volumes": []}))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_run_of_steps_that_are_not_finite_stops_and_keeps_the_batch(
    tmp_path, monkeypatch, factor
):
    real = loss.cross_entropy
    monkeypatch.setattr(loss, "cross_entropy", lambda *args, **rest: real(*args, **rest) * factor)
    config = small(run={"bad_steps": 3})
    with pytest.raises(
        FloatingPointError,
        match=r"step 3: the gradient norm is nan, for 3 steps.*bad-batch-rank0.pt .samples 4 to 5 of epoch 0",
    ):
        start(tmp_path / "run", config)
    batch = torch.load(tmp_path / "run" / "bad-batch-rank0.pt", weights_only=True)
    assert batch["raw"].shape == (2, 3, 89, 89) and batch["keys"] == [[0, 4], [0, 5]]
    assert [row["skipped"] for row in measured(tmp_path / "run")] == [1, 2, 3]
    states = [checkpoint.load(tmp_path / "run" / "checkpoints")]
    states.append(checkpoint.read(tmp_path / "run" / "checkpoints" / "step-00000000.pt"))
    assert [state["step"] for state in states] == [2, 0]
    for key, value in states[0]["networks"].items():
        assert torch.equal(value, states[1]["networks"][key]), f"{key} changed"
    monkeypatch.undo()
    assert recipe.run(config, resumed_run(tmp_path / "run", config, "dense-ssl"), resume=True)


def test_a_run_goes_on_only_with_the_data_it_began_with(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4095, (8, 96, 96), np.uint16)
    np.save(tmp_path / "a.npy", voxels)
    np.save(tmp_path / "moved.npy", voxels)
    np.save(tmp_path / "other.npy", voxels[::-1])  # of the same shape, type and grey range
    np.save(tmp_path / "fewer.npy", voxels[:7])
    np.save(tmp_path / "darker.npy", voxels // 2)
    config = small(data={"volumes": [str(tmp_path / "a.npy")]})
    assert start(tmp_path / "run", config)
    for name in ("moved", "other", "fewer", "darker"):
        again = small(data={"volumes": [str(tmp_path / f"{name}.npy")]})
        folder = resumed_run(tmp_path / "run", again, "dense-ssl")
        if name == "moved":
            assert recipe.run(again, folder, resume=True)
        else:
            with pytest.raises(ValueError, match="trained on other data"):
                recipe.run(again, folder, resume=True)
        del folder


def test_every_field_is_explained():
    missing = [key.name for key in configuration.keys(recipe.Config) if not key.meaning]
    assert not missing
    assert dataclasses.is_dataclass(recipe.Config)


@pytest.mark.parametrize("name", ["exp1", "exp5"])
def test_earlier_attempts_train_and_are_found_out(tmp_path, name):
    short = {
        "data": {"volumes": ["synthetic:shape=8x160x160,seed=1"], "batch_size": 2},
        "run": {"steps": 2, "device": "cpu", "log_every": 1},
    }
    layers = [configuration.preset_layer(name, "dense-ssl"), Layer("test", short)]
    assert start(tmp_path / "run", resolve(recipe.Config, layers))
    assert len(measured(tmp_path / "run")) == 2
    proof = json.loads((tmp_path / "run" / "proof.json").read_text())
    missed = {verdict["title"] for verdict in proof["verdicts"] if verdict["passed"] is False}
    assert proof["passed"] is False and "shift κ" in missed
    assert "FAILED" in (tmp_path / "run" / "report.html").read_text()


def test_labels_that_are_damaged_do_not_end_a_run_that_never_learns_from_them(tmp_path, capsys):
    shape, size = (8, 96, 96), (45.0, 8.0, 8.0)
    rng = np.random.default_rng(0)
    with new_store(tmp_path / "v.zarr") as store:
        for label in (None, "classes"):
            image = store.add_image(shape, np.uint8, size, label=label)
            image.write(Box((0, 0, 0), shape), rng.integers(0, 3, shape).astype(np.uint8))
    (tmp_path / "v.zarr" / "labels" / "classes" / "zarr.json").write_text("null")
    changes = {"volumes": [str(tmp_path / "v.zarr")]}
    assert start(tmp_path / "run", small(data=changes, run={"steps": 2, "picture_every": 1}))
    assert "labels  not shown: " in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()

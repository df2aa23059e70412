import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from em_data import GreyRange, Volume, place_mask
from em_models import DenseEncoder, DenseEncoderConfig, Vit3d, Vit3dConfig
from em_train.dense.data import DataConfig as DenseDataConfig
from em_train.dense.run import DenseRun
from em_train.features.slab import Slab
from em_train.judge import patches
from em_train.judge.patches import (
    Method,
    ProbeConfig,
    Probing,
    _judge,
    check_classes,
    patch_labels,
    print_probing,
    probe,
    slabs,
)
from em_train.judge.truth import Truth
from em_train.mae.data import DataConfig
from em_train.mae.run import MaeRun

PATCH = (2, 8, 8)


@pytest.fixture
def labelled():
    """A raw volume of 20 slices, 16 of them labelled: class 1 in a quarter of every patch."""
    raw = Volume(np.zeros((20, 48, 64), np.uint8), "raw", "numpy", (40.0, 8.0, 8.0))
    classes = np.zeros((16, 48, 64), np.uint8)
    classes[:, ::2, ::2] = 1
    classes[4:6, 8:16, 16:24] = 2  # one patch is all of class 2
    layer = place_mask(raw, Volume(classes, "labels", "numpy", (40.0, 8.0, 8.0)))
    return raw, Truth(("rest", "one", "two"), (layer,), False, True)


def slab(raw, origin, size):
    return Slab(raw, GreyRange(0, 255), PATCH, origin, size)


def test_labels_of_patches_by_majority_and_by_share(labelled):
    raw, truth = labelled
    part = slab(raw, (1, 0, 1), (3, 6, 7))
    most, known = patch_labels(part, truth, None)
    assert known.all() and most.sum(0).eq(1).all()
    two = torch.zeros(3, 6, 7, dtype=torch.bool)
    two[1, 1, 1] = True
    assert torch.equal(most[2], two) and torch.equal(most[0], ~two) and not most[1].any()
    share, _ = patch_labels(part, truth, 0.25)
    assert torch.equal(share[1], ~two) and torch.equal(share[0], ~two)
    share, _ = patch_labels(part, truth, 0.26)
    assert not share[1].any()
    # Slices without labels: their patches do not count.
    _, known = patch_labels(slab(raw, (7, 0, 0), (2, 6, 8)), truth, None)
    assert known[0].all() and not known[1].any()


def test_slices_become_rows_of_patches(labelled):
    raw, truth = labelled
    fit, score = slabs(raw, truth, PATCH, ProbeConfig(fit_z=(0, 9), score_z=(11, 16)))
    assert (fit.origin, fit.size) == ((0, 0, 0), (4, 6, 8))  # slice 8 is half of a patch
    assert (score.origin, score.size) == ((6, 0, 0), (2, 6, 8))
    fit, score = slabs(raw, truth, PATCH, ProbeConfig(window_vx=24))
    assert fit.size[1:] == (3, 3) and fit.origin[1:] == (1, 2)
    assert fit.origin[0] + fit.size[0] <= score.origin[0]
    fit, score = slabs(raw, truth, PATCH, ProbeConfig(score_z=(0, 6)))
    assert (fit.origin[0], fit.size[0], score.origin[0], score.size[0]) == (3, 2, 0, 3)
    with pytest.raises(ValueError, match="share patches"):
        slabs(raw, truth, PATCH, ProbeConfig(fit_z=(0, 9), score_z=(6, 12)))
    with pytest.raises(ValueError, match=r"--score-z is 14:20; labels are there for slices 0:16"):
        slabs(raw, truth, PATCH, ProbeConfig(fit_z=(0, 9), score_z=(14, 20)))


def test_what_is_in_the_features_is_found_and_what_is_not_is_not(capsys):
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(2, 4, 10, 10, generator=generator) < 0.3
    present[0] = ~present[1]
    known = torch.ones(4, 10, 10, dtype=torch.bool)
    noise = torch.randn(6, 4, 10, 10, generator=generator)
    told = noise.clone()
    told[2] += 6 * present[1]
    sides = [(present[:, :2], known[:2]), (present[:, 2:], known[2:])]
    config = ProbeConfig(seeds=2)
    results = [
        _judge(Method(name, maps[:, :2], maps[:, 2:], 0.5), readout, sides, ("rest", "one"), config)
        for name, maps in (("told", told), ("noise", noise))
        for readout in ("linear", "perceptron")
    ]
    for result in results[:2]:
        assert min(result.mean_dice) > 0.9
        assert result.mean_dice == result.classes["one"].dice
        assert min(result.classes["one"].average_precision) > 0.98
    for result in results[2:]:
        assert max(result.mean_dice) < 0.6
    for result in results:
        for one, other in zip(result.classes["one"].dice, result.classes["one"].iou, strict=True):
            assert other == pytest.approx(one / (2 - one))
    unread = replace(results[0], mean_dice=(float("nan"), 0.5))  # no patch of any class
    found = Probing(results=(unread,), names=("rest", "one"), conditions={}).as_json()
    assert json.loads(json.dumps(found, allow_nan=False))["rows"][0]["mean_dice"] == [None, 0.5]
    print_probing(Probing(results=tuple(results), names=("rest", "one"), conditions={}))
    assert "perceptron" in capsys.readouterr().out


def test_wrong_settings_are_refused():
    assert ProbeConfig(label="0.25").share() == 0.25 and ProbeConfig().share() is None
    for label in ("most", "0", "1.5", "nan"):
        with pytest.raises(ValueError, match="wanted majority, or a share"):
            ProbeConfig(label=label)
    with pytest.raises(ValueError, match="at least one seed"):
        ProbeConfig(seeds=0)


def test_runs_of_other_patches_are_refused(monkeypatch):
    runs = {
        f"mae-{z}": MaeRun(
            Vit3d(Vit3dConfig(patch_vx=(z, 8, 8), width=24, depth=1, heads=2)), DataConfig()
        )
        for z in (2, 4)
    }
    encoder = DenseEncoder(DenseEncoderConfig(channels=(4,) * 6, embedding=4))
    runs["dense"] = DenseRun(encoder, DenseDataConfig())
    monkeypatch.setattr(patches, "open_run", lambda path: runs[path.name])
    for first, message in (
        ("mae-2", r"mae-4 .* \(4, 8, 8\) voxels, .* \(2, 8, 8\); .* patches of one size"),
        ("dense", r"mae-4 .* \(4, 8, 8\) voxels, .* \(1, 8, 8\); .* --patch 4,8,8"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(Path(first), "synthetic:", [], ProbeConfig(), beside=[Path("mae-4")])


def test_slices_without_any_class_are_refused(capsys):
    present = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    names = ("rest", "membrane", "synapse")
    with pytest.raises(ValueError, match="--score-z counts as membrane, synapse; .* smaller share"):
        check_classes(present, names, "--score-z")
    present[1, 0, 2, 2] = True
    check_classes(present, names, "--score-z")
    assert "counts as synapse" in capsys.readouterr().err

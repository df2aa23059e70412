"""Runs are proven, evaluated and used from their folders alone; one short training serves all tests."""

import dataclasses
import json

import em_models
import numpy as np
import pytest
import torch
from em_data import Box, grey_range, new_store, open_volume
from em_train.dense import evaluate as dense_evaluate
from em_train.dense import predict as dense_predict
from em_train.dense import report as dense_report
from em_train.dense.audit import shuffle_audit, summarise_rows
from em_train.dense.proof_report import prove_stored_run
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import RunFolder, new_run
from em_train.judge.scores import score_codes
from em_train.judge.truth import Pixels, Protocol, open_truth
from em_train.predict.volume import predict
from em_train.recipes import dense_ssl as recipe

DATA = "synthetic:shape=8x170x170,seed=1"
SMALL = {
    "data": {"volumes": [DATA], "batch_size": 2, "stack": {"size_vx": 65}},
    "model": {"encoder": {"classes": 10, "pools": []}, "predictor_width": 8},
    "loss": {"classes_at_least": 8},
    "optim": {"warmup_steps": 4},
    "run": {"steps": 40, "ema_decay": 0.9, "log_every": 10, "picture_every": 1000, "device": "cpu"},
}


def config_of(**groups):
    return resolve(recipe.Config, [Layer("small", SMALL), Layer("test", groups)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "valid"
    config = config_of()
    assert recipe.run(config, new_run(path, config, "dense-ssl"))
    return path


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "padded"
    config = config_of(model={"encoder": {"classes": 10, "padding": "zeros"}})
    assert recipe.run(config, new_run(path, config, "dense-ssl"))
    return path


def test_the_padded_encoder_fails_and_the_report_says_so(padded):
    """The proof can fail."""
    proof = prove_stored_run(padded, config_of(), recipe.run, audit_steps=0)
    missed = {v.title for v in proof.verdicts if v.passed is False}
    assert proof.passed is False
    assert {"position leak", "shift κ", "shift κ, every pixel"} <= missed
    figures = proof.figures  # measured, and far from the bounds
    assert figures.position_leak > 0.03
    assert figures.shift_kappa < 0.98 and figures.dense_shift_kappa < 0.98
    stored = json.loads((padded / "proof.json").read_text())
    assert stored["passed"] is False and stored["sentence"].startswith("FAILED. ")
    assert (padded / "images" / "proof.png").stat().st_size > 1000
    folder = RunFolder(padded)
    dense_report.write_report(folder, config_of(), {"steps": "40"}, proof)
    report = folder.report.read_text()
    assert "This run FAILED its proof" in report
    assert report.index("verdict") < report.index("steps")
    for verdict in proof.verdicts:
        assert verdict.title in report


def test_valid_convolutions_have_no_shortcut_by_position(run):
    other = "synthetic:shape=4x300x300,seed=5"
    proof = prove_stored_run(run, config_of(), recipe.run, address=other, audit_steps=0, seed=1)
    verdicts = {v.title: v for v in proof.verdicts}
    for title in ("position leak", "shift κ", "shift κ, every pixel"):
        assert verdicts[title].passed, verdicts[title].reason
    assert verdicts["shuffle audit"].passed is None


def test_the_audit_trains_afresh_on_shuffled_context():
    seen = []

    def train(config, folder):
        seen.append(config)
        return recipe.run(config, folder)

    begun = config_of(run={"init": "nowhere"})
    audit = shuffle_audit(begun, train, command="dense-ssl", steps=10)
    (config,) = seen
    assert config.run.init is None
    assert config.data.shuffle_context and config.run.steps == audit.steps == 10
    assert config.model == config_of().model and config.loss == config_of().loss
    assert audit.information < 0.02 and audit.cross_entropy > 0
    alone = config_of(data={"batch_size": 1})
    with pytest.raises(ValueError, match="batch_size of the run is 1; .* wanted 2 or more"):
        shuffle_audit(alone, train, command="dense-ssl", steps=10)
    assert shuffle_audit(config_of(), lambda *_: False, command="dense-ssl", steps=10) is None


def test_the_audit_takes_the_last_tenth():
    rows = [
        {"step": i, "pred": 3.0 if i > 90 else 0.0, "information": 0.5 if i > 90 else 9.0}
        for i in range(1, 101)
    ]
    audit = summarise_rows(rows)
    assert (audit.steps, audit.cross_entropy, audit.mean_code_entropy) == (100, 3.0, 3.5)
    assert audit.information == pytest.approx(0.5)


# Evaluation --------------------------------------------------------------------------------------


def test_codes_are_named_on_the_slices_to_fit_and_scored_on_others():
    codes, classes = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    swapped = score_codes(codes, classes, codes, 1 - classes, k=2, n=2)
    assert swapped.nmi == pytest.approx(1) and swapped.hom == pytest.approx(1)
    assert swapped.m2o_miou == swapped.hungarian_miou == 0  # the names were learned elsewhere
    right = score_codes(codes, classes, codes, classes, k=2, n=2)
    assert right.m2o_miou == right.hungarian_miou == 1 and right.names == (0, 1)
    unlabelled = torch.tensor([0, 0, 1, -1])
    some = score_codes(codes, unlabelled, codes, unlabelled, k=2, n=2)
    assert some.m2o_iou == (1.0, 1.0)


def test_evaluation_compares_with_the_baselines_on_the_same_pixels(run, tmp_path):
    picture = tmp_path / "evaluation.png"
    protocol = Protocol(fit_z=(0, 4), score_z=(5, 8))
    found = dense_evaluate.evaluate(run, (DATA, []), None, protocol)
    rows = {row.method: row for row in found.rows}
    assert set(rows) == {
        *("grey, k-means", "smoothed grey, k-means", "filter bank, k-means"),
        *("filter bank, pooled k-means", "filter bank, mixture", "random encoder, k-means"),
        *("run: codes, probabilities", "run: embedding, k-means"),
    }
    for row in found.rows:
        for score in (row.codes and row.codes.nmi, row.probe and row.probe.miou):
            assert score is None or 0 <= score <= 1
    assert rows["filter bank, k-means"].probe.miou > rows["grey, k-means"].probe.miou
    assert rows["run: embedding, k-means"].pooled is not None
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert stored["protocol"]["score_slices"] == [5, 6, 7]
    assert stored["protocol"]["voxel_size_nm"] == [17.6, 8.0, 8.0]
    found.save_picture(picture)
    assert len(stored["rows"]) == 8 and picture.stat().st_size > 1000


def test_evaluation_scores_another_volume(run):
    other = "synthetic:shape=2x170x170,seed=9"
    found = dense_evaluate.evaluate(run, (DATA, []), (other, []), Protocol(), baselines=False)
    assert [row.method for row in found.rows] == [
        "run: codes, probabilities",
        "run: embedding, k-means",
    ]
    assert found.protocol["score"] == other and found.protocol["fit_slices"] == list(range(8))
    with pytest.raises(ValueError, match="--fit-z is 3:30"):
        dense_evaluate.evaluate(run, (DATA, []), None, Protocol(fit_z=(3, 30)))
    with pytest.raises(ValueError, match="lower --border-vx"):
        dense_evaluate.evaluate(run, (DATA, []), None, Protocol(border_vx=85))


def test_the_same_slices_of_one_volume_are_refused(run, tmp_path, monkeypatch):
    both = Protocol(fit_z=(0, 5), score_z=(4, 8))
    with pytest.raises(ValueError, match=r"0:5 to fit and 4:8 to score of .* overlap"):
        dense_evaluate.evaluate(run, (DATA, []), None, both)
    with pytest.raises(ValueError, match=r"0:8 to fit and 0:8 to score of .* overlap"):
        dense_evaluate.evaluate(run, (DATA, []), (DATA, []), Protocol())
    voxels = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "v.npy", voxels)
    monkeypatch.chdir(tmp_path)
    names = "v.npy", str(tmp_path / "v.npy")  # one volume under two names
    with pytest.raises(ValueError, match="overlap"):
        dense_evaluate.evaluate(run, *((name, [name]) for name in names), Protocol())


def test_few_grey_values_make_few_clusters(run, tmp_path):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, (3, 10, 10)).repeat(17, 1).repeat(17, 2).astype(np.uint8)
    np.save(tmp_path / "raw.npy", 100 + classes + rng.integers(0, 2, classes.shape, np.uint8))
    np.save(tmp_path / "classes.npy", classes)
    at = str(tmp_path / "raw.npy"), [str(tmp_path / "classes.npy")]
    found = dense_evaluate.evaluate(run, at, None, Protocol(grid_vx=8))
    (grey,) = (row.codes for row in found.rows if row.method == "grey, k-means")
    assert 2 < grey.classes <= 3 == len(grey.names) and grey.nmi > 0.2


@pytest.mark.parametrize("mixture", [False, True])
def test_features_that_collapsed_make_one_cluster(mixture):
    classes = torch.arange(12).view(1, 3, 4) % 3
    pixels = Pixels([torch.zeros(12, 16)], classes, [(0, 0, 0)])
    maps = [torch.full((5, 3, 4), 0.1)]
    comparison = dense_evaluate.Comparison(pixels, pixels, n=3, protocol=Protocol())
    score = comparison._kmeans(maps, maps, mixture=mixture)
    assert score.classes == pytest.approx(1) and score.nmi == pytest.approx(0, abs=1e-9)


def test_labels_are_found_where_they_lie(tmp_path):
    raw = open_volume(
        np.zeros((6, 16, 16), np.uint8), voxel_size_nm=(40, 8, 8), origin_nm=(0, 2, 2)
    )
    with new_store(tmp_path / "l.zarr") as store:  # finer, and of three slices from the second on
        for name, box in (("a", Box((0, 0, 0), (3, 20, 32))), ("b", Box((0, 0, 0), (3, 10, 32)))):
            image = store.add_image(
                (3, 32, 32), np.uint8, (40.0, 4.0, 4.0), origin_nm=(40.0, 0.0, 0.0), label=name
            )
            image.write(box, np.ones(box.size_vx, np.uint8))
    addresses = [str(tmp_path / "l.zarr" / "labels" / name) for name in "ab"]
    truth = open_truth(raw, addresses, raw)
    assert truth.names == ("rest", "a", "b") and truth.slices() == range(1, 4)
    classes = truth.read(1, 16, 16)
    assert (classes[:5] == 2).all() and (classes[5:10] == 1).all() and (classes[10:] == 0).all()
    assert (truth.read(0, 16, 16) == -1).all()
    with pytest.raises(ValueError, match="--labels"):
        open_truth(raw, [], raw)


def test_borders_lie_where_instances_meet():
    ids = np.zeros((1, 6, 6), np.uint32)
    ids[:, :, 3:] = 70_000
    volume = open_volume(ids)
    truth = open_truth(volume, ["borders:cells"], _named(volume, "cells"))
    expected = np.zeros((6, 6), int)
    expected[:, 2:4] = 1
    np.testing.assert_array_equal(truth.read(0, 6, 6), expected)
    assert truth.names == ("inside", "border")
    with pytest.raises(ValueError, match="borders:"):
        open_truth(volume, ["cells"], _named(volume, "cells"))


def _named(volume, name):
    """A volume that has another one stored beside it as labels."""
    return dataclasses.replace(volume, label_names=(name,), open_label=lambda _: volume)


# Prediction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["classes", "probabilities", "embedding"])
def test_prediction_is_the_dense_output_everywhere(run, tmp_path, output, monkeypatch):
    monkeypatch.setattr(dense_predict, "TILE_VX", 48)
    out = tmp_path / "o.zarr"
    assert predict(dense_predict.__name__, run, DATA, out, outputs=[output])
    encoder = em_models.load(run / "weights" / "encoder")
    volume = open_volume(DATA)
    m = encoder.geometry.margin
    image = grey_range(volume).unit(volume[3:4, 0:170, 0:170])
    with torch.no_grad():
        codes = encoder(torch.from_numpy(image)[None], dense=True)
    if output == "classes":
        written = open_volume(out)
        assert written.voxel_size_nm == volume.voxel_size_nm
        found = written[3:4, m:-m, m:-m][0]
        assert (found == codes.logits[0].argmax(0).numpy()).mean() > 0.9995
        return
    k = 4
    written = open_volume(out, channel=k)
    found = written[3:4, m:-m, m:-m][0]
    if output == "embedding":
        np.testing.assert_allclose(found, codes.embedding[0, k], atol=2e-5)
    else:
        np.testing.assert_allclose(found / 255, codes.logits[0].softmax(0)[k], atol=0.003)


def test_a_map_of_classes_lies_beside_their_probabilities(run, tmp_path):
    out = tmp_path / "both.zarr"
    outputs = ["classes", "probabilities"]
    assert predict(dense_predict.__name__, run, DATA, out, outputs=outputs)
    assert predict(dense_predict.__name__, run, DATA, tmp_path / "map.zarr")
    codes = open_volume(out, channel=0).labels("classes")[2:4, :, :]
    np.testing.assert_array_equal(codes, open_volume(tmp_path / "map.zarr")[2:4, :, :])
    share = np.stack([open_volume(out, channel=k)[2:4, :, :] for k in range(10)])
    assert np.array_equal(np.take_along_axis(share, codes[None].astype(int), 0)[0], share.max(0))


@pytest.mark.parametrize("output", ["classes", "probabilities"])
def test_voxels_that_are_not_finite_get_no_class(run, tmp_path, output):
    voxels = np.random.default_rng(0).random((1, 80, 80)).astype(np.float32)
    voxels[0, 40, 40] = np.nan
    np.save(tmp_path / "v.npy", voxels)
    out = tmp_path / "o.zarr"
    with pytest.raises(FloatingPointError, match="the volume has voxels that are NaN"):
        predict(dense_predict.__name__, run, str(tmp_path / "v.npy"), out, outputs=[output])
    assert not out.exists()


def test_prediction_refuses_what_it_does_not_know(run, tmp_path):
    with pytest.raises(ValueError, match="wanted classes or probabilities or embedding"):
        predict(dense_predict.__name__, run, DATA, tmp_path / "o.zarr", outputs=["logits"])
    with pytest.raises(ValueError, match="without --tta"):
        predict(
            dense_predict.__name__, run, DATA, tmp_path / "o.zarr", outputs=["embedding"], tta=True
        )
    assert not (tmp_path / "o.zarr").exists()

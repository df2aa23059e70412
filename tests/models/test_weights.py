import dataclasses
import json
import os

import em_models
import pytest
import torch
from em_models import (
    DenseEncoder,
    DenseEncoderConfig,
    FilterBank,
    FilterBankConfig,
    Projector,
    ProjectorConfig,
    SlicePredictor,
    SlicePredictorConfig,
)
from safetensors.torch import load_file, save_file


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (DenseEncoder(DenseEncoderConfig(classes=6)), torch.rand(1, 1, 61, 61)),
        (
            DenseEncoder(DenseEncoderConfig(head="linear", code_pitch_vx=2)),
            torch.rand(1, 1, 61, 61),
        ),
        (SlicePredictor(SlicePredictorConfig(classes=6)), torch.rand(1, 4, 6, 9, 9)),
        (SlicePredictor(SlicePredictorConfig(kind="unet", classes=6)), torch.rand(1, 4, 6, 22, 22)),
        (Projector(ProjectorConfig()), torch.rand(2, 64, 3, 3)),
        (
            FilterBank(FilterBankConfig(sigmas=(2.0,))).fit(torch.rand(1, 1, 30, 30)),
            torch.rand(1, 1, 20, 20),
        ),
    ],
)
def test_what_is_saved_is_loaded(tmp_path, model, given):
    model(given)  # the norms change
    em_models.save(model, tmp_path / "weights")
    loaded = em_models.load(tmp_path / "weights")
    assert type(loaded) is type(model) and loaded.config == model.config
    assert not loaded.training
    expected, got = model.eval()(given), loaded(given)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_nothing_but_json_and_safetensors_is_written(tmp_path):
    em_models.save(SlicePredictor(SlicePredictorConfig(classes=3)), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="wanted config.json"):
        em_models.load(tmp_path)
    em_models.save(SlicePredictor(SlicePredictorConfig(classes=3)), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        em_models.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged"):
        em_models.load(tmp_path)
    with pytest.raises(ValueError, match="Linear"):
        em_models.save(torch.nn.Linear(2, 2), tmp_path)


@pytest.fixture
def folder(tmp_path):
    em_models.save(DenseEncoder(DenseEncoderConfig(classes=3)), tmp_path / "encoder")
    return tmp_path / "encoder"


def change(folder, **changes):
    path = folder / "config.json"
    described = json.loads(path.read_text())
    described["config"] |= changes
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "7", '{"class": "DenseEncoder"', "[" * 100_000, '{"class": []}']
    + [
        json.dumps({"class": name, "format": 1, "config": config})
        for name, config in (("DenseEncoder", None), ("DenseEncoder", [1]), (["x"], {}), (None, {}))
    ],
)
def test_a_configuration_of_another_shape_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"encoder/config\.json (is damaged|describes)"):
        em_models.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "unknown keys colour"),
        ({"classes": "3"}, "classes is '3', wanted int"),
        ({"classes": None}, "classes is None"),
        ({"classes": True}, "classes is True"),
        ({"classes": -1}, "classes is -1; wanted at least"),
        ({"kernels": 3}, "kernels is 3"),
        ({"kernels": [3, "x"]}, "kernels is 'x'"),
        ({"head": "none"}, "head is 'none'"),
    ],
)
def test_a_key_that_cannot_be_is_named_with_the_file(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(ValueError, match=rf"config\.json describes no DenseEncoder .*{message}"):
        em_models.load(folder)


def test_tensors_of_another_model_are_named(folder):
    path = folder / "model.safetensors"
    whole = load_file(path)
    key = next(iter(whole))
    for tensors, message in (
        ({k: v for k, v in whole.items() if k != key}, f"{key} is missing"),
        (whole | {"extra": torch.zeros(1)}, "extra is unknown"),
        (whole | {key: torch.zeros(2, 2)}, rf"{key} is \(2, 2\), wanted"),
        ({}, "is missing.* and .* more"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=rf"model\.safetensors holds .* another .*{message}"):
            em_models.load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is not there"):
        em_models.load(folder)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no plain file"):
        em_models.load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "hf-hub:someone/model"},
        {"backbone": "hf_hub:someone/model"},
        {"backbone": "local-dir:/etc"},
        {"backbone": "../x"},
        {"pretrained": True},
        {"pretrained": "yes"},
    ],
)
def test_nothing_is_fetched_because_a_file_says_so(tmp_path, monkeypatch, changes):
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("timm was asked"))
    config = dataclasses.asdict(em_models.TimmEncoderConfig()) | changes
    described = {"class": "TimmEncoder", "format": 1, "config": config}
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json would have timm fetch"):
        em_models.load(tmp_path)

import json

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

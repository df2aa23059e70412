"""A finished segmentation is opened, or what is wrong with its files has a name."""

import json

import em_models
import pytest
from em_models import DenseEncoder, DenseEncoderConfig, UNet, UNetConfig
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import segment
from em_train.segment.run import open_run
from em_train.segment.series import read_scores


@pytest.fixture
def run(tmp_path):
    config = resolve(segment.Config, [Layer("test", {"run": {"device": "cpu"}})])
    folder = new_run(tmp_path / "run", config, "segment")
    network = UNet(UNetConfig(channels=(4, 6), classes=2))
    em_models.save(network, folder.weights / "network")
    classes = {"names": ["a", "b"], "thresholds": [0.4, 0.5], "loss": "binary"}
    (folder.path / "classes.json").write_text(json.dumps(classes))
    return folder.path


def test_it_is_opened(run):
    found = open_run(run)
    assert (found.names, found.thresholds) == (("a", "b"), (0.4, 0.5))


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", '{"names": ["a", "b"]}', "\x00"),
        '{"names": ["a", "b"], "thresholds": [0.4]}',
        '{"names": ["a"], "thresholds": [0.4]}',
        '{"names": ["a", 2], "thresholds": [0.4, 0.5]}',
        '{"names": ["a", "b"], "thresholds": [0.4, null]}',
    ],
)
def test_classes_of_another_shape_are_named(run, text):
    (run / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=r"classes\.json (is damaged|has .* names).* --resume"):
        open_run(run)


def test_weights_of_another_class_and_missing_files_are_named(run):
    em_models.save(DenseEncoder(DenseEncoderConfig(classes=2)), run / "weights" / "network")
    with pytest.raises(ValueError, match="weights/network holds a DenseEncoder, wanted a UNet"):
        open_run(run)
    (run / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no classes\.json; finish the run first"):
        open_run(run)


@pytest.mark.parametrize("text", ["", "null", '{"classes": null}', '{"classes": [{"class": "a"}]}'])
def test_scores_of_another_shape_are_named(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=r"scores\.json is damaged.*scored again"):
        read_scores(tmp_path, 1)

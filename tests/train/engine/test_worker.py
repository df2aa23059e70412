from pathlib import Path

import torch
from em_train.engine import checkpoint
from em_train.engine.config import Layer, file_layer, resolve
from em_train.engine.run_folder import new_run
from em_train.engine.worker import work
from em_train.recipes import dense_ssl as recipe

SMALL = file_layer(Path(__file__).with_name("small.toml"), "dense-ssl")


def small(**groups):
    return resolve(recipe.Config, [SMALL, Layer("test", groups)])


def test_a_run_that_ended_before_its_first_checkpoint_still_starts_from_other_weights(tmp_path):
    first = small(run={"steps": 1, "device": "cpu"})
    assert work(recipe, "dense-ssl", first, tmp_path / "a", resume=False)
    settings = {"steps": 1, "device": "cpu", "init": str(tmp_path / "a"), "seed": 1}
    second = small(run=settings)
    new_run(tmp_path / "b", second, "dense-ssl")  # and no more: killed right after
    assert work(recipe, "dense-ssl", second, tmp_path / "b", resume=True)
    average = checkpoint.load(tmp_path / "a" / "checkpoints")["average"]
    begun = checkpoint.read(tmp_path / "b" / "checkpoints" / "step-00000000.pt")["networks"]
    for name, weights in begun.items():
        torch.testing.assert_close(weights, average[f"module.{name}"])
    # With a checkpoint, that counts.
    before = checkpoint.load(tmp_path / "b" / "checkpoints")["networks"]
    assert work(recipe, "dense-ssl", second, tmp_path / "b", resume=True)
    assert "resumed at step 1" in (tmp_path / "b" / "log.txt").read_text()
    after = checkpoint.load(tmp_path / "b" / "checkpoints")["networks"]
    assert all(torch.equal(before[name], after[name]) for name in before)

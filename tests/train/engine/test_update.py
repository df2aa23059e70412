import copy
import dataclasses

import pytest
import torch
from em_models import BatchNorm
from em_train.engine import optim, precision
from em_train.engine.optim import OptimConfig
from em_train.engine.run_config import RunConfig
from em_train.engine.update import Update, save_batch
from torch import nn

CPU = torch.device("cpu")


def make(kind="fp32", **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.Linear(4, 1))
    clip_norm = settings.pop("clip_norm", 5.0)
    optimiser = optim.adamw(model, OptimConfig(lr=0.1))
    scaler, run = precision.grad_scaler(kind, CPU), RunConfig(**settings)
    return model, optimiser, Update(model, optimiser, scaler, clip_norm=clip_norm, run=run)


def everything(model, optimiser):
    """All that a step may change, as a flat list of tensors."""
    moments = [t for state in optimiser.state_dict()["state"].values() for t in state.values()]
    return [t.clone() for t in (*model.state_dict().values(), *moments)]


def loss_of(model, x):
    return model(x).square().mean()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_no_trace_but_a_count(bad):
    model, optimiser, update = make()
    alone = copy.deepcopy(model)
    twin_optimiser = optim.adamw(alone, OptimConfig(lr=0.1))
    twin = Update(
        alone, twin_optimiser, precision.grad_scaler("fp32", CPU), clip_norm=5.0, run=RunConfig()
    )
    first, poison, last = batches(3)
    poison[0, 0] = bad
    for x in (first, last):
        assert twin(loss_of(alone, x))
    assert update(loss_of(model, first))
    before = everything(model, optimiser)
    assert update(loss_of(model, poison))
    after = everything(model, optimiser)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert update.row()["skipped"] == 1 and not update.row()["grad_norm"] < float("inf")
    assert update(loss_of(model, last))
    assert update.row()["skipped"] == 1 and update.row()["grad_norm"] < float("inf")
    pairs = zip(everything(model, optimiser), everything(alone, twin_optimiser), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_only_steps_in_a_row_stop_a_run(tmp_path):
    @dataclasses.dataclass
    class Some:
        raw: torch.Tensor

    model, _, update = make(bad_steps=2)
    good, bad = batches(1)[0], torch.full((8, 3), float("nan"))
    for x in (bad, good, bad):
        update(loss_of(model, x))
        update.check(1, Some(x), tmp_path)
    update(loss_of(model, bad))
    with pytest.raises(FloatingPointError, match="for 2 steps in a row.*bad-batch-rank0.pt"):
        update.check(4, Some(bad), tmp_path)
    kept = torch.load(tmp_path / "bad-batch-rank0.pt", weights_only=True)
    assert torch.equal(kept["raw"], bad) or kept["raw"].isnan().all()


def test_a_batch_is_kept_without_pickle(tmp_path):
    from em_data import Key
    from em_data.loader import Batch

    fields = {field.name: None for field in dataclasses.fields(Batch)}
    fields |= {"raw": torch.ones(1, 2), "keys": [Key(0, 3)], "voxel_size_nm": [(4.0, 1.0, 1.0)]}
    save_batch(Batch(**fields), tmp_path / "batch.pt")
    kept = torch.load(tmp_path / "batch.pt", weights_only=True)
    assert kept["keys"] == [[0, 3]] and kept["voxel_size_nm"] == [[4.0, 1.0, 1.0]]
    assert torch.equal(kept["raw"], torch.ones(1, 2))


def test_gradients_of_several_batches_are_averaged_into_one_step():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    twin = copy.deepcopy(model)
    data = batches(4)
    config, scaler = OptimConfig(), precision.grad_scaler("fp32", CPU)
    run = RunConfig(accumulate=4)
    update = Update(model, optim.adamw(model, config), scaler, clip_norm=1e9, run=run)
    done = [update(loss_of(model, x)) for x in data]
    assert done == [False, False, False, True]
    once = Update(twin, optim.adamw(twin, config), scaler, clip_norm=1e9, run=RunConfig())
    assert once(loss_of(twin, torch.cat(data)))
    assert update.row()["grad_norm"] == pytest.approx(once.row()["grad_norm"], rel=1e-5)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_clipped():
    model, _, update = make(clip_norm=1e-3)
    seen = []
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm()))
    before = [p.detach().clone() for p in model.parameters()]
    update(1e6 * loss_of(model, batches(1)[0]))
    assert seen[0] > 1 and update.row()["grad_norm"] > 1
    moved = [(a - b).abs().max() for a, b in zip(model.parameters(), before, strict=True)]
    assert max(moved) > 0
    moments = [state["exp_avg"] for state in update._optimiser.state.values()]
    total = torch.stack([m.norm() for m in moments]).norm()
    assert total == pytest.approx(0.1 * 1e-3, rel=1e-3)  # (1 − β₁) · the clipped gradient


def test_fp16_scales_losses_and_backs_off():
    model, optimiser, update = make("fp16")
    plain, plain_optimiser, reference = make("fp32")
    x = batches(1)[0]
    update(loss_of(model, x))
    reference(loss_of(plain, x))
    pairs = zip(everything(model, optimiser), everything(plain, plain_optimiser), strict=True)
    for a, b in pairs:  # scaling by a power of two and back changes nothing
        torch.testing.assert_close(a, b)
    assert update.row()["grad_norm"] == pytest.approx(reference.row()["grad_norm"])
    scale = update.state_dict()["scaler"]["scale"]
    assert scale > 1
    update(loss_of(model, x * float("inf")))
    assert update.state_dict()["scaler"]["scale"] == scale / 2 and update.row()["skipped"] == 1


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_it_goes_on_where_it_was(kind, tmp_path):
    model, optimiser, update = make(kind)
    update(loss_of(model, batches(1)[0]))
    update(loss_of(model, torch.full((8, 3), float("nan"))))
    torch.save(update.state_dict(), tmp_path / "state")
    again_model, again_optimiser, again = make(kind)
    again_model.load_state_dict(model.state_dict())
    again_optimiser.load_state_dict(optimiser.state_dict())
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    bad = torch.full((8, 3), float("nan"))
    for m, u in ((model, update), (again_model, again)):
        u(loss_of(m, bad))
    assert again.row()["skipped"] == update.row()["skipped"] == 2
    assert again.state_dict()["scaler"] == update.state_dict()["scaler"]
    for a, b in zip(model.buffers(), again_model.buffers(), strict=True):
        assert torch.equal(a, b)

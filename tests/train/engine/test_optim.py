import pytest
import torch
from em_train.engine import optim
from em_train.engine.optim import OptimConfig, Schedule
from torch import nn


def test_only_matrices_are_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    optimiser = optim.adamw(model, OptimConfig(lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_layers_learn_the_slower_the_closer_they_are_to_the_input():
    model = nn.ModuleDict(
        {"stem": nn.Linear(2, 2), "body": nn.Linear(2, 2), "head": nn.Linear(2, 1)}
    )
    model["body"].bias.requires_grad = False
    config = OptimConfig(lr=1.0, layer_decay=0.5, weight_decay=0.1)
    optimiser = optim.adamw(model, config, layers=[model["stem"], model["body"]])
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    decays = {p: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    expected = {"stem": 0.25, "body": 0.5, "head": 1.0}
    for name, rate in expected.items():
        assert rates[model[name].weight] == rate and decays[model[name].weight] == 0.1
    assert rates[model["stem"].bias] == 0.25 and decays[model["stem"].bias] == 0
    assert model["body"].bias not in rates
    schedule = Schedule(optimiser, config, 600)
    assert schedule.lr == pytest.approx(1 / 21)  # of the head, at the first step of the warm-up


def rates_of(config, steps, measures=None):
    optimiser = optim.adamw(nn.Linear(1, 1), config)
    schedule, rates = Schedule(optimiser, config, steps), []
    for step in range(steps):
        rates.append(schedule.lr)
        optimiser.step()
        schedule.step()
        if measures:
            schedule.measure(measures[step])
    return [*rates, schedule.lr]


def test_warm_up_then_cosine_to_zero():
    rates = rates_of(OptimConfig(warmup_steps=10, lr=1.0), 110)
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0)


def test_warm_up_then_down_on_a_plateau():
    config = OptimConfig(
        warmup_steps=3, lr=1.0, schedule="plateau", plateau_factor=0.1, plateau_patience=2
    )
    falling = rates_of(config, 12, [1 / (n + 1) for n in range(12)])
    assert falling == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 10)
    flat = rates_of(config, 12, [1.0] * 12)
    # The first measurement after warm-up is the best; two more are waited for, the third is enough.
    assert flat == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001])


@pytest.mark.parametrize("kind", ["cosine", "plateau"])
def test_a_schedule_goes_on_where_it_was(kind):
    config = OptimConfig(warmup_steps=4, schedule=kind, plateau_patience=1)

    def make():
        optimiser = optim.adamw(nn.Linear(1, 1), config)
        return optimiser, Schedule(optimiser, config, 20)

    def advance(optimiser, schedule, steps):
        for _ in range(steps):
            optimiser.step()
            schedule.step()
            schedule.measure(1.0)
        return schedule.lr

    whole = make()
    expected = [advance(*whole, 7), advance(*whole, 7)]
    first = make()
    assert advance(*first, 7) == expected[0]
    again = make()
    for part, state in zip(again, [part.state_dict() for part in first], strict=True):
        part.load_state_dict(state)
    assert advance(*again, 7) == expected[1]

import pytest
import torch
from em_train import optim
from em_train.optim import OptimConfig
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


def test_warm_up_then_cosine_to_zero():
    config = OptimConfig(steps=110, warmup_steps=10, lr=1.0)
    optimiser = optim.adamw(nn.Linear(1, 1), config)
    schedule = optim.cosine(optimiser, config)
    rates = []
    for _ in range(110):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.5)
    assert schedule.get_last_lr()[0] == pytest.approx(0)

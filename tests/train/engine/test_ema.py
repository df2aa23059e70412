import copy

import pytest
import torch
from em_train.engine.ema import decay_at, moving_average
from em_train.engine.run_config import RunConfig
from torch import nn


@pytest.mark.parametrize("end", [None, 1.0])
def test_the_average_follows_the_weights_with_its_decay(end):
    config = RunConfig(steps=4, ema_decay=0.5, ema_decay_end=end)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    average = moving_average(model, config)
    expected = None
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
            model[1].running_mean.add_(1.0)
        average.update_parameters(model)
        now = model.state_dict()
        if expected is None:  # the first update copies
            expected = copy.deepcopy(now)
        else:
            decay = [0.5, None, None, None][0] if end is None else decay_at(step, config)
            expected = {
                k: v if not v.is_floating_point() else decay * expected[k] + (1 - decay) * v
                for k, v in now.items()
            }
    for key, value in average.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[key])
    assert not average.module.training


def test_the_decay_rises_by_half_a_cosine():
    config = RunConfig(steps=100, ema_decay=0.9, ema_decay_end=1.0)
    decays = [decay_at(step, config) for step in (0, 25, 50, 75, 100, 150)]
    assert decays == pytest.approx([0.9, 0.9146447, 0.95, 0.9853553, 1.0, 1.0])
    assert decay_at(70, RunConfig(ema_decay=0.9)) == 0.9

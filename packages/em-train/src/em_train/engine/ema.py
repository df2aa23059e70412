"""The moving average of weights, by torch; the decay may rise during the run."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from em_train.engine.run_config import RunConfig


def decay_at(step: int, config: RunConfig) -> float:
    """From `ema_decay` to `ema_decay_end` by half a cosine over the run; constant without an end.

    >>> decay_at(50, RunConfig(steps=100, ema_decay=0.9, ema_decay_end=1.0))
    0.95
    """
    start, end = config.ema_decay, config.ema_decay_end
    if end is None:
        return start
    done = min(1.0, step / config.steps)
    return end - (end - start) * (1 + math.cos(math.pi * done)) / 2


def moving_average(model: nn.Module, config: RunConfig) -> AveragedModel:
    """The average of a model's weights and buffers, in evaluation mode."""

    def move(averages: Any, current: Any, number: Any) -> None:
        get_ema_multi_avg_fn(decay_at(int(number), config))(averages, current, number)

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True).eval()

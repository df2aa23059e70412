"""Optimiser and schedule: AdamW without decay on norms, biases and prototypes; cosine with warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are changed."""

    steps: PositiveInt = 600
    """Number of optimiser steps of the whole run."""
    lr: PositiveFloat = 2e-3
    """Learning rate of AdamW after warm-up; it follows a cosine down to zero."""
    warmup_steps: NonNegativeInt = 20
    """Steps over which the learning rate rises from zero."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decay of weight matrices; norms, biases and scalars are not decayed."""
    clip_norm: PositiveFloat = 5.0
    """Gradients are scaled down to this norm when they exceed it."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights, which are the ones that are shown and saved."""


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors and scalars alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
    )


def cosine(
    optimiser: torch.optim.Optimizer, config: OptimConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to zero at the last step."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)

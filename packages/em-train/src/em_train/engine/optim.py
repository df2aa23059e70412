"""Optimiser and schedule: AdamW without decay on norms, biases and prototypes; warm-up, then a
cosine, or steps down when a measure stops falling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from em_train.engine import distributed

Fraction = Annotated[float, Field(gt=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One optimiser: how it changes parameters. A recipe with two players has two."""

    lr: PositiveFloat = 2e-3
    """Learning rate of AdamW after warm-up."""
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    """Decay of AdamW's averages of gradients and of their squares."""
    warmup_steps: NonNegativeInt = 20
    """Steps over which the learning rate rises from zero."""
    schedule: Literal["cosine", "plateau"] = "cosine"
    """Learning rate after warm-up: cosine (down to zero at the last step) or plateau (reduced
    when the measure stops falling)."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor on the learning rate at each plateau, with schedule=plateau."""
    plateau_patience: NonNegativeInt = 10
    """Measurements without improvement before the rate is reduced, with schedule=plateau."""
    layer_decay: Fraction = 1.0
    """Learning rate of a layer relative to the one after it; below 1 for fine-tuning."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decay of weight matrices; norms, biases and scalars are not decayed."""
    clip_norm: PositiveFloat = 5.0
    """Largest norm of the gradients; larger ones are scaled down to it."""


def adamw(
    model: nn.Module, config: OptimConfig, layers: Sequence[nn.Module] = ()
) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors and scalars alone.

    Args:
        layers: modules from the input to the output; with `layer_decay` d, the last but n of them
            learns at lr · d^(n + 1), and what is in none of them at lr.
    """
    scales: dict[nn.Parameter, float] = {}
    for below, layer in enumerate(reversed(layers), 1):
        scales |= dict.fromkeys(layer.parameters(), config.layer_decay**below)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            decay = config.weight_decay if p.dim() > 1 else 0.0
            groups.setdefault((scales.get(p, 1.0), decay), []).append(p)
    fused = all(p.device.type in ("cuda", "cpu") for p in model.parameters())
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": config.lr * scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=fused,  # one pass over memory, and it can skip a step without asking the GPU
    )


class Schedule:
    """The learning rate of every step, as a factor on that of each group."""

    def __init__(self, optimiser: torch.optim.Optimizer, config: OptimConfig, steps: int) -> None:
        def factor(step: int) -> float:
            if step < config.warmup_steps:
                return (step + 1) / (config.warmup_steps + 1)
            if config.schedule == "plateau":
                return 1.0
            done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        self._optimiser, self._config = optimiser, config
        self._steps = LambdaLR(optimiser, factor)
        self._plateau = ReduceLROnPlateau(
            optimiser, factor=config.plateau_factor, patience=config.plateau_patience
        )

    @property
    def lr(self) -> float:
        """The largest learning rate of the coming step."""
        return max(float(group["lr"]) for group in self._optimiser.param_groups)

    def step(self) -> None:
        """One more step was made."""
        if self._config.schedule == "cosine" or self._rising:
            self._steps.step()

    def measure(self, value: float) -> None:
        """A measure that should fall; with `plateau`, the rate goes down when it does not.

        Called by all processes: what counts is the mean of what they measured.
        """
        if self._config.schedule == "plateau" and not self._rising:
            self._plateau.step(distributed.mean(value))

    @property
    def _rising(self) -> bool:
        return self._steps.last_epoch < self._config.warmup_steps

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        return {"steps": self._steps.state_dict(), "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._steps.load_state_dict(state["steps"])
        self._plateau.load_state_dict(state["plateau"])

"""One training step of a recipe, ready to be made again and again: what its speed is measured with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from em_data.loader import Batch, Loader
from torch import Tensor, nn

from em_train.engine import distributed, precision
from em_train.engine.ema import moving_average
from em_train.engine.run_config import RunConfig
from em_train.engine.update import Update


class Rehearsal(NamedTuple):
    """Batches, and what a run does with each of them."""

    networks: nn.Module
    loader: Loader
    step: Callable[[Batch], object]
    loss: Callable[[Any, Batch], Tensor]
    """Of the networks on a batch, for whoever wants gradients and no step."""


def one_player(
    networks: nn.Module,
    loader: Loader,
    loss_of: Callable[[Any, Batch], Tensor],
    optimiser: torch.optim.Optimizer,
    *,
    clip_norm: float,
    run: RunConfig,
    device: torch.device,
) -> Rehearsal:
    """The step of a recipe with one optimiser: loss, gradients, weights, their average."""
    average = moving_average(networks, run)
    if run.compile:
        for network in networks.children():
            network.compile()
    scaler = precision.grad_scaler(run.precision, device)
    update = Update(networks, optimiser, scaler, clip_norm=clip_norm, run=run)
    measured = distributed.parallel(loss_of, networks)

    def step(batch: Batch) -> None:
        with precision.autocast(run.precision, device):
            loss = measured(batch.to(device))
        if update(loss):
            average.update_parameters(networks)

    return Rehearsal(networks, loader, step, loss_of)

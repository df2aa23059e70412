"""What can be read from frozen features: a plane or a small perceptron for each class, and its scores.

Classes are asked for one by one, each with a yes or no of its own, because a patch may hold several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 64  # channels of the perceptron
ROUNDS = 200  # of the perceptron, over all features at once
DECAY = 1e-2  # of its weights


@dataclass(frozen=True)
class Readout:
    """A readout of standardised features."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    network: nn.Module

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """The probability of each class: (N, D) -> (N, C) float64."""
        return self.network((features.double() - self.mean) / self.std).sigmoid()


def fit_readout(
    features: Tensor, present: Tensor, *, hidden: int = 0, c: float = 1.0, seed: int = 0
) -> Readout:
    """A readout of (N, D) features that tells the shares (N, C), each in [0, 1], of every class.

    Without `hidden` channels a plane for each class, found exactly: it minimises c · Σ cross-entropy +
    ½ ‖weight‖² over standardised features. With them a perceptron, by AdamW over all features at once.
    """
    x, y = features.double(), present.double()
    std, mean = torch.std_mean(x, 0, correction=0)
    std = torch.where(std > 1e-9, std, 1)  # a feature that never changes says nothing
    x = (x - mean) / std
    network: nn.Module
    if hidden:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = (nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, y.shape[1]))
            network = nn.Sequential(*layers)
        _descend(network, x.float(), y.float())
        network.double()
    else:
        network = nn.Linear(x.shape[1], y.shape[1]).double()
        _solve(network, x, y, c)
    return Readout(mean, std, network.requires_grad_(False))


def _solve(plane: nn.Linear, x: Tensor, y: Tensor, c: float) -> None:
    nn.init.zeros_(plane.weight)
    nn.init.zeros_(plane.bias)
    optimiser = torch.optim.LBFGS(
        plane.parameters(),
        max_iter=200,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.binary_cross_entropy_with_logits(plane(x), y, reduction="sum") / len(x)
        value = value + plane.weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)


def _descend(network: nn.Module, x: Tensor, y: Tensor) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=DECAY)
    with torch.enable_grad():
        for done in range(ROUNDS):
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * done / ROUNDS))
            optimiser.zero_grad()
            F.binary_cross_entropy_with_logits(network(x), y).backward()
            optimiser.step()


# Scores ------------------------------------------------------------------------------------------


def average_precision(score: Tensor, truth: Tensor) -> float:
    """Σ (R_n − R_{n−1}) P_n over falling thresholds: two (N,), NaN where nothing is true.

    >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, False, True]))
    0.8333333333333333
    """
    if not truth.any():
        return math.nan
    values, order = score.sort(descending=True, stable=True)
    true = truth[order].double()
    met, seen = true.cumsum(0), torch.arange(1, len(true) + 1)
    last = torch.cat(
        [values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)]
    )  # of equal scores
    met, seen = met[last], seen[last]
    gained = torch.diff(met, prepend=met.new_zeros(1)) / met[-1]
    return float((gained * met / seen).sum())


def best_threshold(score: Tensor, truth: Tensor) -> float:
    """The score from which on a yes gives the highest Dice: two (N,); half where nothing is true."""
    if not truth.any():
        return 0.5
    values, order = score.sort(descending=True, stable=True)
    met = truth[order].double().cumsum(0)
    dice = 2 * met / (torch.arange(1, len(met) + 1) + met[-1])
    last = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
    return float(values[torch.where(last, dice, -1).argmax()])


def dice(found: Tensor, truth: Tensor) -> float:
    """2 · both / (found + true) of two bool tensors; NaN where nothing is true."""
    both, either = int((found & truth).sum()), int(found.sum()) + int(truth.sum())
    return 2 * both / either if truth.any() else math.nan


def determination(
    features: Tensor, target: Tensor, test_features: Tensor, test_target: Tensor
) -> float:
    """R² of targets (M, T) read from features (M, D) by a plane that was fitted on others: at most 1.

    The mean over the targets; ridge regression of standardised features, as light as rounding needs.
    """
    std, mean = torch.std_mean(features.double(), 0, correction=0)
    std = torch.where(std > 1e-9, std, 1)
    x, test_x = ((one.double() - mean) / std for one in (features, test_features))
    centre = target.double().mean(0)
    ridge = 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(x.T @ x + ridge, x.T @ (target.double() - centre))
    missed = (test_target.double() - centre - test_x @ weight).square().sum(0)
    whole = (test_target.double() - test_target.double().mean(0)).square().sum(0)
    return float((1 - missed / whole).mean())


CROPS, TEST_CROPS = 48, 16  # from which position is read


def place_score(vectors: Sequence[Tensor], places: Tensor) -> float:
    """R² of places (N, T) from the vectors (N, D) of crops, fitted on some and tested on others."""
    fitted, tested = torch.cat(list(vectors[:CROPS])), torch.cat(list(vectors[CROPS:]))
    return determination(fitted, places.repeat(CROPS, 1), tested, places.repeat(TEST_CROPS, 1))

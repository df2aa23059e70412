"""What can be read from features by a plane: logistic regression on few labelled pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PER_CLASS = 1500  # labelled pixels of a class that are learned from


@dataclass(frozen=True)
class Probe:
    """A linear classifier of standardised features."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (n, D)
    bias: Tensor  # (n,)

    def __call__(self, features: Tensor) -> Tensor:
        """The class of every feature: (N, D) -> (N,)."""
        weight = self.weight / self.std
        bias = self.bias - weight @ self.mean
        return F.linear(features, weight.to(features), bias.to(features)).argmax(1)


def fit_probe(features: Tensor, classes: Tensor, *, n: int, c: float = 1.0) -> Probe:
    """Logistic regression of (N, D) features and (N,) classes below n, as scikit-learn's.

    Minimises c · Σ cross-entropy + ½ ‖weight‖² over standardised features; the bias is free.
    """
    y = classes.long()
    std, mean = torch.std_mean(features.double(), 0, correction=0)
    std = torch.where(std > 1e-9, std, 1)  # a feature that never changes says nothing
    x = ((features - mean) / std).float()  # twice as fast, and no label is decided by the rest
    met = y.unique()  # a class without pixels has no plane of its own
    targets = torch.searchsorted(met, y)
    weight = torch.zeros(len(met), x.shape[1])
    bias = torch.zeros(len(met))
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=200,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    truth = F.one_hot(targets, len(met)).to(x)

    def loss() -> Tensor:  # its gradient by hand: autograd takes twice as long for so few numbers
        log_p = F.linear(x, weight, bias).log_softmax(1)
        excess = (log_p.exp() - truth) / len(x)
        weight.grad = excess.T @ x + weight / (c * len(x))
        bias.grad = excess.sum(0)
        return -(log_p * truth).sum() / len(x) + weight.square().sum() / (2 * c * len(x))

    with torch.no_grad():
        optimiser.step(loss)
    planes = torch.zeros(n, x.shape[1], dtype=torch.float64)
    height = torch.full((n,), -torch.inf, dtype=torch.float64)
    planes[met], height[met] = weight.double(), bias.double()
    return Probe(mean, std, planes, height)


def few_of_each(classes: Tensor, *, per_class: int = PER_CLASS, seed: int = 0) -> Tensor:
    """Places of at most `per_class` random pixels of every class ≥ 0: (N,) -> (M,), ascending."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for value in classes.unique():
        if value >= 0:
            there = (classes == value).nonzero()[:, 0]
            chosen.append(there[torch.randperm(len(there), generator=generator)[:per_class]])
    return torch.cat(chosen).sort().values

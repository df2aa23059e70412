"""Numbers that say how much one labelling tells about another."""

from __future__ import annotations

import torch
from torch import Tensor


def contingency(codes: Tensor, classes: Tensor) -> Tensor:
    """Counts of every pair: integer tensors of the same shape -> (codes, classes) float64."""
    codes, classes = codes.flatten().long(), classes.flatten().long()
    rows, columns = int(codes.max()) + 1, int(classes.max()) + 1
    counts = torch.bincount(codes * columns + classes, minlength=rows * columns)
    return counts.view(rows, columns).double()


def entropy(counts: Tensor) -> Tensor:
    """Entropy of a histogram in nats: () from any shape of counts."""
    return torch.special.entr(counts / counts.sum()).sum()


def mutual_information(counts: Tensor) -> Tensor:
    """I(code; class) of a contingency table, in nats: ()."""
    return entropy(counts.sum(1)) + entropy(counts.sum(0)) - entropy(counts)


def nmi(codes: Tensor, classes: Tensor) -> float:
    """Mutual information over the arithmetic mean of the two entropies, in [0, 1].

    >>> nmi(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 3, 3]))
    1.0
    """
    counts = contingency(codes, classes)
    mean = (entropy(counts.sum(1)) + entropy(counts.sum(0))) / 2
    return float(mutual_information(counts) / mean) if mean > 0 else 0.0


def effective_classes(codes: Tensor) -> float:
    """exp(entropy of the histogram of hard codes): how many classes are really used.

    >>> round(effective_classes(torch.tensor([0, 0, 1, 1])), 6)
    2.0
    """
    return float(entropy(torch.bincount(codes.flatten().long()).double()).exp())

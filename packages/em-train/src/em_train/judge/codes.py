"""Numbers that say how much one labelling tells about another.

Codes are what was learned or clustered, classes are the truth. A code has no name of its own: it gets
the name of a class on labels that are for learning, and is scored on others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NONE = -1  # the class of a code that was given none


def contingency(
    codes: Tensor, classes: Tensor, *, k: int | None = None, n: int | None = None
) -> Tensor:
    """Counts of every pair: integer tensors of the same shape -> (codes, classes) float64.

    `k` codes and `n` classes where they are known; else as many as are met.
    """
    codes, classes = codes.flatten().long(), classes.flatten().long()
    rows = int(codes.max()) + 1 if k is None else k
    columns = int(classes.max()) + 1 if n is None else n
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


def homogeneity(codes: Tensor, classes: Tensor) -> float:
    """I(code; class) / H(class): the share of the classes that the codes tell, in [0, 1].

    NMI favours few codes; this does not mind how many there are.

    >>> round(homogeneity(torch.tensor([0, 1, 2, 3]), torch.tensor([5, 5, 3, 3])), 6)
    1.0
    """
    counts = contingency(codes, classes)
    whole = entropy(counts.sum(0))
    return float(mutual_information(counts) / whole) if whole > 0 else 0.0


def share_told(codes: Tensor, other: Tensor) -> float:
    """I(code; other) / H(code): how much of the codes something else tells, in [0, 1].

    >>> round(share_told(torch.tensor([0, 0, 1, 1]), torch.tensor([3, 2, 1, 0])), 6)
    1.0
    """
    return homogeneity(other, codes)


def effective_classes(codes: Tensor) -> float:
    """exp(entropy of the histogram of hard codes): how many classes are really used.

    >>> round(effective_classes(torch.tensor([0, 0, 1, 1])), 6)
    2.0
    """
    return float(entropy(torch.bincount(codes.flatten().long()).double()).exp())


def largest_share(codes: Tensor) -> float:
    """Share of the most frequent code."""
    counts = torch.bincount(codes.flatten().long()).double()
    return float(counts.max() / counts.sum())


def kappa(first: Tensor, second: Tensor) -> float:
    """Cohen's κ of two labellings with the same names: 1 agreement, 0 as by chance.

    NaN where both say the same single class everywhere: nothing can be learned from that.

    >>> kappa(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]))
    1.0
    """
    size = int(max(first.max(), second.max())) + 1
    joint = contingency(first, second, k=size, n=size)
    joint /= joint.sum()
    chance = joint.sum(0) @ joint.sum(1)
    return float((joint.trace() - chance) / (1 - chance)) if chance < 1 else math.nan


# Names for codes -----------------------------------------------------------------------------


def majority_names(counts: Tensor) -> Tensor:
    """The class that each code is most often met with: (K, n) counts -> (K,).

    A code that was never met takes the most frequent class.
    """
    names = counts.argmax(1)
    names[counts.sum(1) == 0] = counts.sum(0).argmax()
    return names


def matched_names(counts: Tensor) -> Tensor:
    """One code for each class so that the sum of their IoU is largest: (K, n) counts -> (K,).

    Codes that are left over have no name, `NONE`. Kuhn 1955, The Hungarian Method.
    """
    union = counts.sum(1, keepdim=True) + counts.sum(0) - counts
    overlap = counts / union.clamp(min=1)  # (K, n) IoU
    names = torch.full((len(counts),), NONE)
    classes = range(min(counts.shape))
    flipped = counts.shape[0] < counts.shape[1]  # fewer codes than classes
    rows = overlap if flipped else overlap.T
    chosen = _assignment((-rows).tolist())
    for i in classes:
        code, name = (i, chosen[i]) if flipped else (chosen[i], i)
        names[code] = name
    return names


def _assignment(cost: list[list[float]]) -> list[int]:
    """The column of each row so that the sum of costs is smallest; not more rows than columns.

    Shortest augmenting paths with potentials, row by row (Jonker & Volgenant 1987).
    """
    n, m = len(cost), len(cost[0])
    of_row, of_column = [0.0] * (n + 1), [0.0] * (m + 1)
    row_at = [0] * (m + 1)  # the row that has each column, counted from 1; 0 is free
    for row in range(1, n + 1):
        row_at[0], column = row, 0
        least, before, seen = [math.inf] * (m + 1), [0] * (m + 1), [False] * (m + 1)
        while row_at[column]:
            seen[column], i, nearest, step = True, row_at[column], 0, math.inf
            for j in range(1, m + 1):
                if not seen[j]:
                    reduced = cost[i - 1][j - 1] - of_row[i] - of_column[j]
                    if reduced < least[j]:
                        least[j], before[j] = reduced, column
                    if least[j] < step:
                        step, nearest = least[j], j
            for j in range(m + 1):
                if seen[j]:
                    of_row[row_at[j]] += step
                    of_column[j] -= step
                else:
                    least[j] -= step
            column = nearest
        while column:
            row_at[column], column = row_at[before[column]], before[column]
    columns = [0] * n
    for j in range(1, m + 1):
        if row_at[j]:
            columns[row_at[j] - 1] = j - 1
    return columns


def iou(named: Tensor, classes: Tensor, n: int) -> Tensor:
    """Intersection over union of each class: labels of the same shape -> (n,).

    NaN for a class that the truth lacks: whoever does not name it is right.

    >>> iou(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3).tolist()
    [0.5, 0.5, nan]
    """
    named = torch.where(named == NONE, n, named)  # a column of its own
    counts = contingency(classes, named, k=n, n=n + 1)
    both = counts[:, :n].diagonal()
    true = counts.sum(1)
    found = both / (true + counts[:, :n].sum(0) - both)
    return torch.where(true > 0, found, math.nan)

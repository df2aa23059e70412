"""Instances within slices: what hangs together, and how well two divisions of a slice agree.

    mitochondria        what of a class hangs together
    between:membrane    what hangs together of the rest: the cells between membranes

Truth and prediction are divided in the same way, by the four neighbours of a pixel. Where labels are
numbered, objects of different numbers stay apart in the truth, although they touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BETWEEN = "between:"


class Subject(NamedTuple):
    """Which instances are judged."""

    channel: int
    between: bool

    @classmethod
    def of(cls, text: str, names: Sequence[str]) -> Subject:
        """What `--instances` says, with the names of all classes.

        >>> Subject.of("between:membrane", ("membrane", "mitochondria"))
        Subject(channel=0, between=True)
        """
        name = text.removeprefix(BETWEEN)
        if name not in names:
            raise ValueError(
                f"--instances={text} names the class {name!r}; wanted one of {', '.join(names)}, or "
                f"{BETWEEN} and one of them"
            )
        return cls(list(names).index(name), name != text)


class Overlaps(NamedTuple):
    """Pixels of a slice that two divisions share; those of several slices are concatenated."""

    both: np.ndarray  # (P,) of every pair of instances that meet
    predicted: np.ndarray  # (I,) of every predicted instance, and of what was not found
    true: np.ndarray  # (J,) of every true instance


@dataclass(frozen=True, kw_only=True)
class InstanceScore:
    """How two divisions into instances agree; where the truth has no instance nothing counts."""

    voi_split: float
    """H(predicted | true) in bits: true instances that were cut."""
    voi_merge: float
    """H(true | predicted) in bits: true instances that were joined."""
    rand_error: float
    """1 − harmonic mean of the two below (adapted Rand error, Arganda-Carreras et al. 2015)."""
    rand_precision: float
    """Share of the pairs of pixels of a predicted instance that are in one true instance."""
    rand_recall: float
    """Share of the pairs of pixels of a true instance that are in one predicted instance."""
    instances: int
    """True instances in all slices."""


def divide(
    found: np.ndarray, labels: np.ndarray, known: np.ndarray, *, between: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true instances of a slice: bool, integers, bool, (Y, X) each -> int64 (Y, X), 0 none."""
    if not between:
        return components(found), components(np.where(known, labels, 0))
    # Cells tile the slice: how wide a border was drawn says nothing about which cells it parts.
    return grown_together(components(~found)), components((labels == 0) & known)


def overlaps(predicted: np.ndarray, truth: np.ndarray) -> Overlaps:
    """Sizes of what two divisions share, where the truth is not 0: integers of one shape."""
    if predicted.shape != truth.shape:
        raise ValueError(
            f"instances have shapes {predicted.shape} and {truth.shape}; wanted the same"
        )
    known = truth != 0
    _, first = np.unique(predicted[known], return_inverse=True)
    _, second = np.unique(truth[known], return_inverse=True)
    pairs = first * (second.max(initial=0) + 1) + second
    return Overlaps(
        np.unique(pairs, return_counts=True)[1], np.bincount(first), np.bincount(second)
    )


def judge_instances(slices: Iterable[Overlaps]) -> InstanceScore:
    """Variation of information and adapted Rand error over slices, no instance being in two of them."""
    gathered = list(slices)
    both, predicted, true = (
        np.concatenate([one[i] for one in gathered] or [np.zeros(0, np.int64)]) for i in range(3)
    )
    if not true.size:
        raise ValueError("the truth has no instance; nothing can be judged")
    joint, of_predicted, of_true = map(_entropy_bits, (both, predicted, true))
    same, in_predicted, in_true = map(_pairs, (both, predicted, true))
    precision = same / in_predicted if in_predicted else 1.0
    recall = same / in_true if in_true else 1.0
    total = precision + recall
    return InstanceScore(
        voi_split=joint - of_true,
        voi_merge=joint - of_predicted,
        rand_error=1 - (2 * precision * recall / total if total else 0.0),
        rand_precision=precision,
        rand_recall=recall,
        instances=len(true),
    )


def components(values: np.ndarray) -> np.ndarray:
    """What hangs together by one of four neighbours of the same value, numbered from 1: (Y, X), 0 is none.

    >>> components(np.array([[7, 7, 0], [0, 0, 7], [5, 7, 7]]))
    array([[1, 1, 0],
           [0, 0, 2],
           [3, 2, 2]])
    """
    # Runs of a row are nodes; those that touch runs of the next row are joined at the smaller number.
    begins = np.ones(values.shape, bool)
    begins[:, 1:] = values[:, 1:] != values[:, :-1]
    runs = np.cumsum(begins.ravel()).reshape(values.shape) - 1
    touch = (values[1:] == values[:-1]) & (begins[1:] | begins[:-1])
    upper, lower = runs[:-1][touch], runs[1:][touch]
    root = np.arange(begins.sum())
    while (apart := root[upper] != root[lower]).any():
        upper, lower = upper[apart], lower[apart]
        ends = np.sort(np.stack([root[upper], root[lower]]), 0)  # (2, edges)
        np.minimum.at(root, ends[1], ends[0])
        while (further := root[root]).tobytes() != root.tobytes():
            root = further
    inside = values[begins] != 0  # (runs,)
    number = np.unique(root[inside], return_inverse=True)[1]
    numbers = np.zeros(len(root), np.int64)
    numbers[inside] = number + 1
    return numbers[runs]


def grown_together(instances: np.ndarray, within: np.ndarray | None = None) -> np.ndarray:
    """Instances grown step by step until they fill the slice: (Y, X) integers, 0 is free -> same.

    With `within`, bool, they fill that, where it hangs together with them.
    """
    if not instances.any():
        return instances.copy()
    found = np.pad(instances, 1)
    flat, row = found.ravel(), found.shape[1]
    inner = np.zeros(found.shape, bool)
    inner[1:-1, 1:-1] = True
    if within is not None:
        inner &= np.pad(within, 1)
    free = np.flatnonzero(inner & (found == 0))
    reached = True
    while free.size and reached:
        around = (flat[free - 1], flat[free + 1], flat[free - row], flat[free + row])
        flat[free] = np.maximum.reduce(around)
        left = free[flat[free] == 0]
        free, reached = left, left.size < free.size
    return found[1:-1, 1:-1]


def _entropy_bits(sizes: np.ndarray) -> float:
    shares = sizes / sizes.sum()
    return float(-(shares * np.log2(shares)).sum())


def _pairs(sizes: np.ndarray) -> float:
    """Pairs of pixels within instances, each counted twice."""
    return float((sizes.astype(np.float64) * (sizes - 1)).sum())

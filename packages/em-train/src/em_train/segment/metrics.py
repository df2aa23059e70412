"""How well a segmentation agrees with the truth: per class, per slice, with intervals.

All scores are ratios of counts, and counts of tiles add up: to those of slices, of volumes, and of
volumes made of other tiles of the same kind, which is what the bootstrap draws. Probabilities are
bytes, as predictions are stored, so one histogram holds every threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from em_train.engine.jsonable import blank_nan

TILE_VX = 256  # side of the squares that are drawn for the intervals
ROUNDS = 1000  # draws of the bootstrap
LEVELS = 256  # of a probability

# What is counted, last axis of all counts. A boundary pixel is met when the other labelling has one
# within the tolerance.
COUNTS = ("tp", "fp", "fn", "tn", "found_met", "found", "true_met", "true")
SCORES = ("dice", "iou", "precision", "recall", "boundary_f1", "accuracy")


class Judged(NamedTuple):
    """A predicted slice and its truth; a class is a channel."""

    where: str
    probability: np.ndarray  # (C, Y, X) uint8, 255 is certain
    truth: np.ndarray  # (C, Y, X) bool
    valid: np.ndarray  # (C, Y, X) bool: where the truth is known


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """What came out for one class."""

    name: str
    threshold: float
    """Probability from which a pixel is of the class."""
    scores: dict[str, float]
    """Value of every score, over all slices together; NaN where there is nothing to score."""
    intervals: dict[str, tuple[float, float]]
    """95 % of the draws of tiles lie between."""
    average_precision: float
    slices: dict[str, dict[str, float]]
    """The same scores of every slice."""

    def as_json(self) -> dict[str, Any]:
        """Flat, with None for what is not a number."""
        found: dict[str, Any] = {"class": self.name, "threshold": self.threshold}
        found |= self.scores
        found |= {f"{name}_interval": pair for name, pair in self.intervals.items()}
        found |= {"average_precision": self.average_precision, "slices": self.slices}
        return dict(blank_nan(found))


def judge(
    slices: Iterable[Judged],
    names: Sequence[str],
    thresholds: Sequence[float],
    *,
    tolerance_vx: int = 3,
    tile_vx: int = TILE_VX,
    seed: int = 0,
) -> list[ClassScore]:
    """All scores of every class; slices are taken one at a time.

    The intervals come from drawing tiles of side `tile_vx`; so large that a slice is one, slices. Pieces of one slice have the same name. Thresholds are for the caller to choose, on other slices:
    `best_thresholds`.
    """
    levels = np.array([threshold_level(t) for t in thresholds])
    tiles, sums = [], np.zeros((len(names), 2, LEVELS), np.int64)
    by_slice: dict[str, np.ndarray] = {}  # (C, 8)
    for one in slices:
        predicted = one.probability >= levels[:, None, None]
        counts = count_tiles(predicted, one.truth, one.valid, tolerance_vx, tile_vx)
        tiles.append(counts)
        by_slice[one.where] = by_slice.get(one.where, 0) + counts.sum(0)
        sums += histograms(one.probability, one.truth, one.valid)
    if not tiles:
        raise ValueError("no slice to judge")
    drawn = np.concatenate(tiles)  # (T, C, 8)
    total, spread, precision = (
        scores(drawn.sum(0)),
        intervals(drawn, seed=seed),
        average_precision(sums),
    )
    each = {where: scores(counts) for where, counts in by_slice.items()}
    return [
        ClassScore(
            name=name,
            threshold=float(thresholds[c]),
            scores={key: float(values[c]) for key, values in total.items()},
            intervals={key: (float(v[c, 0]), float(v[c, 1])) for key, v in spread.items()},
            average_precision=float(precision[c]),
            slices={w: {key: float(v[c]) for key, v in one.items()} for w, one in each.items()},
        )
        for c, name in enumerate(names)
    ]


# Counts of tiles ---------------------------------------------------------------------------------


def count_tiles(
    predicted: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    tolerance_vx: int,
    tile_vx: int = TILE_VX,
) -> np.ndarray:
    """`COUNTS` of every class in every tile with a valid pixel: (C, Y, X) bool each -> (T, C, 8)."""
    found, true = predicted & valid, truth & valid
    edges, true_edges = boundaries(found, valid), boundaries(true, valid)
    columns = (
        found & true,
        found & ~true,
        true & ~found,
        valid & ~found & ~true,
        edges & grown(true_edges, tolerance_vx),
        edges,
        true_edges & grown(edges, tolerance_vx),
        true_edges,
    )
    starts = [np.arange(0, n, tile_vx) for n in predicted.shape[1:]]
    counts = []
    for column in columns:
        rows = np.add.reduceat(column, starts[0], axis=1, dtype=np.int64)
        counts.append(np.add.reduceat(rows, starts[1], axis=2).reshape(len(column), -1))
    stacked = np.stack(counts, -1).swapaxes(0, 1)  # (T, C, 8)
    return stacked[stacked[..., :4].any((1, 2))]


def boundaries(inside: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels with one of the four neighbours outside, both being valid: (C, Y, X) bool -> same."""
    found = np.zeros_like(inside)
    outside = valid & ~inside
    for axis in (1, 2):
        first = _part(axis, slice(None, -1))
        second = _part(axis, slice(1, None))
        found[first] |= inside[first] & outside[second]
        found[second] |= inside[second] & outside[first]
    return found


def grown(mask: np.ndarray, radius_vx: int) -> np.ndarray:
    """Pixels at most `radius_vx` from one of a mask, as the crow flies: (C, Y, X) bool -> same."""
    height, width = mask.shape[1:]
    found = mask.copy()
    for dy in range(-radius_vx, radius_vx + 1):
        for dx in range(-radius_vx, radius_vx + 1):
            if (dy, dx) == (0, 0) or dy * dy + dx * dx > radius_vx * radius_vx:
                continue
            if abs(dy) < height and abs(dx) < width:
                to = _part(
                    1, slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
                )
                of = _part(
                    1,
                    slice(max(0, -dy), height - max(0, dy)),
                    slice(max(0, -dx), width - max(0, dx)),
                )
                found[to] |= mask[of]
    return found


def scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`SCORES` from `COUNTS`: (…, 8) -> (…) each, NaN where a ratio is 0 of 0."""
    tp, fp, fn, tn, found_met, found, true_met, true = np.moveaxis(counts.astype(np.float64), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found_share, true_share = found_met / found, true_met / true
        both = np.where(
            found + true > 0, np.nan_to_num(found_share) + np.nan_to_num(true_share), np.nan
        )
        return {
            "dice": 2 * tp / (2 * tp + fp + fn),
            "iou": tp / (tp + fp + fn),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            # The harmonic mean of the two shares; 0 where one labelling has no boundary.
            "boundary_f1": np.where(
                both > 0, 2 * np.nan_to_num(found_share * true_share) / both, both
            ),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
        }


def intervals(
    tiles: np.ndarray, *, rounds: int = ROUNDS, share: float = 0.95, seed: int = 0
) -> dict[str, np.ndarray]:
    """Between which values `share` of the draws lie: (T, C, 8) -> (C, 2) for every score.

    As many tiles as there are, drawn with replacement (Efron 1979). Few tiles give few different
    draws: with less than about ten, an interval says little.
    """
    times = np.random.default_rng(seed).multinomial(
        len(tiles), np.full(len(tiles), 1 / len(tiles)), size=rounds
    )  # (R, T)
    drawn = np.tensordot(times, tiles, 1)  # (R, C, 8)
    ends = [(1 - share) / 2, (1 + share) / 2]
    found = {}
    for name, values in scores(drawn).items():
        known = [column[~np.isnan(column)] for column in values.T]
        pairs = [np.quantile(c, ends) if len(c) else np.full(2, np.nan) for c in known]
        found[name] = np.stack(pairs)
    return found


# All thresholds ----------------------------------------------------------------------------------


def histograms(probability: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Number of pixels of each probability, not of the class and of it: (C, Y, X) -> (C, 2, 256)."""
    found = np.empty((len(probability), 2, LEVELS), np.int64)
    for c, (values, true, known) in enumerate(zip(probability, truth, valid, strict=True)):
        for of_class in (False, True):
            chosen = values[known & (true == of_class)]
            found[c, int(of_class)] = np.bincount(chosen, minlength=LEVELS)
    return found


def average_precision(sums: np.ndarray) -> np.ndarray:
    """Σ (R_n − R_{n−1}) P_n over falling thresholds: (C, 2, 256) -> (C,), NaN without a true pixel."""
    negative, positive = (sums[:, i, ::-1].astype(np.float64) for i in (0, 1))
    met = positive.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = met / (met + negative.cumsum(1))
        share = positive / met[:, -1:]
    return np.where(met[:, -1] > 0, np.nansum(np.where(share > 0, share * precision, 0), 1), np.nan)


def best_thresholds(sums: np.ndarray) -> np.ndarray:
    """The threshold of the highest Dice of each class, in (0, 1]: (C, 2, 256) -> (C,).

    In the middle of those that are equally good; half where the class has no true pixel.
    """
    negative, positive = (sums[:, i, ::-1].cumsum(1)[:, ::-1].astype(np.float64) for i in (0, 1))
    true = positive[:, :1]
    dice = 2 * positive / np.maximum(positive + negative + true, 1)  # at each level and above
    chosen = []
    for of_class, of_true in zip(dice[:, 1:], true[:, 0], strict=True):
        best = np.flatnonzero(of_class == of_class.max()) + 1
        chosen.append(best[len(best) // 2] / (LEVELS - 1) if of_true else 0.5)
    return np.array(chosen)


def threshold_level(threshold: float) -> int:
    """The smallest byte that is at or above a threshold.

    >>> threshold_level(0.5), threshold_level(1.0)
    (128, 255)
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold:g}; wanted 0 < threshold ≤ 1")
    return int(np.ceil(round(threshold * (LEVELS - 1), 6)))


def _part(axis: int, *parts: slice) -> tuple[slice, ...]:
    """An index of consecutive axes, from `axis` on, of (C, Y, X)."""
    index = [slice(None)] * 3
    index[axis : axis + len(parts)] = parts
    return tuple(index)

"""Ranges of slices [first, end): which are fitted, and which are scored."""

from __future__ import annotations

import math

Range = tuple[int, int]


def fit_and_score(
    labelled: range, fit_z: Range | None, score_z: Range | None, of: str
) -> tuple[Range, Range]:
    """Slices [first, end) of one volume to fit and to score.

    As wanted; else the first 60 % to fit and the last 30 % to score of those with labels, apart from the
    other range. `of` says in messages whose slices they are.
    """
    for option, wanted in (("--fit-z", fit_z), ("--score-z", score_z)):
        if wanted:
            check_range(option, wanted, labelled, of)
    count = len(labelled)
    early = (labelled.start, labelled.start + math.ceil(0.6 * count))
    late = (labelled.stop - math.ceil(0.3 * count), labelled.stop)
    score = score_z or (_apart(late, fit_z) if fit_z else late)
    fit = fit_z or _apart(early, score)
    for what, (first, end), other in (("fit", fit, score), ("score", score, fit)):
        if first >= end:
            raise ValueError(
                f"labels are there for slices {labelled.start}:{labelled.stop} of {of}; none is left to "
                f"{what} beside {other[0]}:{other[1]}: give --fit-z and --score-z apart from each "
                "other, or label more slices"
            )
    return fit, score


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges [first, end) share something."""
    return one[0] < other[1] and other[0] < one[1]


def check_range(option: str, wanted: Range, labelled: range, of: str) -> None:
    """Refuse a range [first, end) of which not all slices have labels."""
    first, end = wanted
    if first >= end or first < labelled.start or end > labelled.stop:
        raise ValueError(
            f"{option} is {first}:{end}; labels are there for slices "
            f"{labelled.start}:{labelled.stop} of {of}; give a range of these"
        )


def _apart(own: Range, other: Range) -> Range:
    """What of a range lies before another one, or, where it begins within or after that, after it."""
    if own[0] < other[0]:
        return own[0], min(own[1], other[0])
    return max(own[0], other[1]), own[1]

"""How labellings and features are compared with the truth: one protocol for every method.

Fitting slices, where codes get names and probes are trained, and scoring slices, at the same pixels
for every method: every few pixels, away from the borders. Which slices is said by the user; nothing
of the scoring slices is used before they are scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box as boxes
from rich.console import Console
from rich.table import Table
from torch import Tensor

from em_train.engine.jsonable import blank_nan
from em_train.judge.codes import (
    contingency,
    effective_classes,
    homogeneity,
    iou,
    majority_names,
    matched_names,
    nmi,
)
from em_train.judge.probe import Probe, few_of_each, fit_probe

# Scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CodeScore:
    """How well hard codes agree with the truth on the scoring slices."""

    nmi: float
    hom: float
    m2o_miou: float
    m2o_iou: tuple[float, ...]
    hungarian_miou: float
    classes: float
    names: tuple[int, ...]
    """The class that the majority of each code's fitting pixels has."""


def score_codes(
    fit_codes: Tensor, fit_classes: Tensor, codes: Tensor, classes: Tensor, *, k: int, n: int
) -> CodeScore:
    """Codes are named on the fitting pixels and scored on others; pixels below class 0 do not count."""
    fitted, scored = fit_classes >= 0, classes >= 0
    counts = contingency(fit_codes[fitted], fit_classes[fitted], k=k, n=n)
    seen, true = codes[scored].long(), classes[scored]
    names = majority_names(counts)
    by_majority = iou(names[seen], true, n)
    by_match = iou(matched_names(counts)[seen], true, n)
    return CodeScore(
        nmi=nmi(seen, true),
        hom=homogeneity(seen, true),
        m2o_miou=float(by_majority.nanmean()),
        m2o_iou=tuple(by_majority.tolist()),
        hungarian_miou=float(by_match.nanmean()),
        classes=effective_classes(seen),
        names=tuple(names.tolist()),
    )


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """What a plane through features tells about the truth on the scoring slices."""

    miou: float
    iou: tuple[float, ...]


Features = Callable[[int], Tensor]  # number of the slice -> (D, y, x)


def score_probe(
    fit: Features,
    fit_classes: Tensor,
    features: Features,
    classes: Tensor,
    *,
    n: int,
    seed: int = 0,
) -> ProbeScore:
    """Logistic regression on few pixels of the fitting slices (Z, y, x), scored on others.

    Features are asked for slice by slice: of all slices together they may not fit into memory.
    """
    chosen = few_of_each(fit_classes.flatten(), seed=seed)
    per_slice = fit_classes[0].numel()
    parts = []
    for z in range(len(fit_classes)):
        here = chosen[(chosen >= z * per_slice) & (chosen < (z + 1) * per_slice)] - z * per_slice
        if len(here):
            parts.append(fit(z).flatten(1).T[here])
    probe: Probe = fit_probe(torch.cat(parts), fit_classes.flatten()[chosen], n=n)
    named, true = [], []
    for z, plane in enumerate(classes):
        scored = plane >= 0
        named.append(probe(features(z)[:, scored].T))
        true.append(plane[scored])
    found = iou(torch.cat(named), torch.cat(true), n)
    return ProbeScore(miou=float(found.nanmean()), iou=tuple(found.tolist()))


# Results -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method in the table; what does not apply to it is None."""

    method: str
    codes: CodeScore | None = None
    probe: ProbeScore | None = None
    pooled: ProbeScore | None = None

    def as_json(self) -> dict[str, Any]:
        """The row, flat, with None for what is not a number."""
        found: dict[str, Any] = {"method": self.method}
        if self.codes:
            found |= {
                "nmi": self.codes.nmi,
                "hom": self.codes.hom,
                "m2o_miou": self.codes.m2o_miou,
                "m2o_iou": self.codes.m2o_iou,
                "hungarian_miou": self.codes.hungarian_miou,
                "effective_classes": self.codes.classes,
            }
        for name, score in (("probe", self.probe), ("pooled_probe", self.pooled)):
            if score:
                found |= {f"{name}_miou": score.miou, f"{name}_iou": score.iou}
        return dict(blank_nan(found))


def print_rows(rows: Sequence[Row], names: Sequence[str]) -> None:
    """The methods side by side."""
    table = Table(box=boxes.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    heads = ("NMI", "hom", "m2o mIoU", "Hungarian", "classes", "probe", "pooled probe")
    for head in (*heads, *(f"IoU {name}" for name in names)):
        table.add_column(head, justify="right")
    for row in rows:
        codes, cells = row.codes, []
        if codes:
            scores = (codes.nmi, codes.hom, codes.m2o_miou, codes.hungarian_miou)
            cells += [*(f"{score:.3f}" for score in scores), f"{codes.classes:.1f}"]
        else:
            cells += [""] * 5
        cells += [f"{score.miou:.3f}" if score else "" for score in (row.probe, row.pooled)]
        by_class = codes.m2o_iou if codes else row.probe.iou if row.probe else ()
        cells += ["–" if math.isnan(value) else f"{value:.2f}" for value in by_class]
        table.add_row(row.method, *cells)
    # Numbers cut off by a narrow window are worse than lines that wrap.
    Console(width=max(Console().width, 40 + 13 * len(table.columns))).print(table)

"""Restorations side by side on the same slices: a learned one, classical ones, and the input itself.

Each is scored slice by slice. Intervals are of draws of slices with replacement (Efron 1979), and the
difference to the best classical filter is taken within slices, which leaves out how hard they are.
Where slices were degraded twice, the hallucination gap is there, beside that of a linear filter of
equal strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from em_train.engine.jsonable import blank_nan
from em_train.restore import scores

ROUNDS = 1000  # draws of the bootstrap
SHARE = 0.95  # of the draws that lie within an interval
INPUT = "input"  # name of the row of what is restored

Restore = Callable[[np.ndarray], np.ndarray]
Interval = tuple[float, float]


class Case(NamedTuple):
    """A slice to score: degraded once or twice, and its truth."""

    where: str
    degraded: np.ndarray
    """(Y, X) or (Z, Y, X) float in [0, 1], as restorers take it."""
    truth: np.ndarray  # (Y, X)
    second: np.ndarray | None = None
    """The same slice degraded anew, independently; what is invented needs it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came out for one restoration."""

    method: str
    classical: bool
    settings: dict[str, Any]
    """Of a filter that was tuned."""
    values: dict[str, float]
    """`SCORES` over all slices; NaN for what could not be judged."""
    intervals: dict[str, Interval]
    difference: float | None
    """Of PSNR to the best classical filter, in dB; None for that one, and where there is none."""
    difference_interval: Interval | None
    invented_by_octave: tuple[float, ...]
    """See `em_train.restore.scores`; the finest first, empty without second copies."""
    slices: dict[str, dict[str, float]]
    """PSNR, its scale-invariant kin and SSIM of every slice."""

    def as_json(self) -> dict[str, Any]:
        """Flat, with None for what is not a number."""
        found: dict[str, Any] = {"method": self.method, "classical": self.classical}
        found["settings"] = self.settings
        found |= self.values
        found |= {f"{name}_interval": pair for name, pair in self.intervals.items()}
        found["difference"] = self.difference
        found["difference_interval"] = self.difference_interval
        found["invented_by_octave"] = self.invented_by_octave
        return dict(blank_nan(found | {"slices": self.slices}))


OF_SLICES = ("psnr", "si_psnr", "ssim")  # means over slices
OF_SUMS = ("resolution", "gap", "linear_gap", "invented")  # from sums over slices
SCORES = OF_SLICES + OF_SUMS


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All rows, and under what conditions."""

    rows: tuple[Row, ...]
    best_classical: str | None
    slices: tuple[str, ...]
    data_range: float
    pixel_nm: float | None

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "data_range": self.data_range,
            "resolution_in": "pixels" if self.pixel_nm is None else "nm",
            "slices": list(self.slices),
            "best_classical": self.best_classical,
            "rows": [row.as_json() for row in self.rows],
        }

    def show(self) -> None:
        """Print how close each came to the truth, and what it invented where that was judged."""
        console = Console(soft_wrap=True)
        unit = "px" if self.pixel_nm is None else "nm"
        table = _table("PSNR", "SI-PSNR", "SSIM", f"FRC {unit}", "over best", f"{SHARE:.0%}")
        for row in self.rows:
            cells = [_shown(name, row.values[name]) for name in (*OF_SLICES, "resolution")]
            table.add_row(row.method, *cells, *_difference(row))
        console.print(table)
        if any(row.invented_by_octave for row in self.rows):
            table = _table("gap", "of linear", "invented", "by octave from fine")
            for row in self.rows:
                cells = [_shown(name, row.values[name]) for name in OF_SUMS[1:]]
                octaves = " ".join(_shown("octave", one) for one in row.invented_by_octave)
                table.add_row(row.method, *cells, octaves)
            console.print(table)
        for row in self.rows:
            if row.settings:
                said = ", ".join(f"{key} {value}" for key, value in row.settings.items())
                console.print(f"{row.method}: {said}", highlight=False)
        best = f"; over best: over {self.best_classical}" if self.best_classical else ""
        console.print(
            f"{len(self.slices)} slices; PSNR in dB for a range of grey of {self.data_range:g}{best}",
            highlight=False,
        )


def compare(
    cases: Sequence[Case],
    restorers: Mapping[str, Restore],
    classical: Mapping[str, Restore] | None = None,
    *,
    data_range: float = 1.0,
    pixel_nm: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Score restorations on the same slices.

    Args:
        cases: slices that nothing was chosen on.
        restorers: what is to be judged; each takes what `Case.degraded` holds and returns (Y, X).
        classical: filters to beat, tuned on other slices. The best of them by PSNR on the scored
            slices is what differences are taken to: the strictest choice.
        data_range: of grey values, for PSNR and SSIM.
        pixel_nm: side of a pixel; with it, resolutions are in nm.
        seed: of the draws for intervals.
    """
    if not cases:
        raise ValueError("no slice to score; give at least one with its truth")
    every = dict(classical or {}) | dict(restorers)
    if len(every) < len(classical or {}) + len(restorers) or INPUT in every:
        raise ValueError(
            f"two restorations have one name among {', '.join(every)}, or one is called {INPUT!r}, "
            "which is that of the input; name them apart"
        )
    if all(plane_of(case.degraded).shape == case.truth.shape for case in cases):
        every = {INPUT: plane_of} | every
    draws = np.random.default_rng(seed).multinomial(
        len(cases), np.full(len(cases), 1 / len(cases)), size=ROUNDS
    )
    scorer = _Scorer(cases, draws, data_range, pixel_nm)
    found = {name: scorer.score(name, restore) for name, restore in every.items()}
    best = max(classical, key=lambda name: found[name].values["psnr"]) if classical else None
    rows = [
        Row(
            method=name,
            classical=name in (classical or {}),
            settings=dict(getattr(every[name], "settings", {})),
            values=one.values,
            intervals=one.intervals,
            difference=None if best in (None, name) else one.difference(found[best]),
            difference_interval=(
                None if best in (None, name) else one.difference_interval(found[best], draws)
            ),
            invented_by_octave=one.octaves,
            slices=one.by_slice,
        )
        for name, one in found.items()
    ]
    return Comparison(
        rows=tuple(rows),
        best_classical=best,
        slices=tuple(case.where for case in cases),
        data_range=data_range,
        pixel_nm=pixel_nm,
    )


@dataclass(frozen=True)
class _Scored:
    """Scores of one restoration, before it is compared."""

    values: dict[str, float]
    intervals: dict[str, Interval]
    octaves: tuple[float, ...]
    by_slice: dict[str, dict[str, float]]
    psnr: np.ndarray  # (S,)

    def difference(self, other: _Scored) -> float:
        with np.errstate(invalid="ignore"):
            return float((self.psnr - other.psnr).mean())

    def difference_interval(self, other: _Scored, draws: np.ndarray) -> Interval:
        with np.errstate(invalid="ignore"):
            return _interval(draws @ (self.psnr - other.psnr) / draws.sum(1))


class _Scorer:
    """Scores restorations on some slices and the same draws of them."""

    def __init__(
        self, cases: Sequence[Case], draws: np.ndarray, data_range: float, pixel_nm: float | None
    ) -> None:
        self.cases, self.draws, self.data_range = cases, draws, data_range
        self.pixel = 1.0 if pixel_nm is None else pixel_nm
        self.count = scores.ring_count(*(case.truth.shape for case in cases))
        self.twice = all(case.second is not None for case in cases)

    def score(self, name: str, restore: Restore) -> _Scored:
        """All scores of one restoration."""
        of_slices, with_truth, sums, linear = [], [], [], []
        for case in self.cases:
            restored = _restored(name, restore, case.degraded, case.truth)
            of_slices.append(self._of_slice(restored, case.truth))
            with_truth.append(scores.rings(restored, case.truth, self.count))
            if case.second is None or not self.twice:
                continue
            again = _restored(name, restore, case.second, case.truth)
            sums.append(scores.agreement(restored, again, case.truth, self.count))
            pairs = ((plane_of(case.degraded), restored), (plane_of(case.second), again))
            if all(one.shape == case.truth.shape for one, _ in pairs):
                one, two = (scores.linear_twin(*pair) for pair in pairs)
                linear.append(scores.agreement(one, two, case.truth, self.count))
        table = np.array(of_slices)  # (S, 3)
        once = np.ones((1, len(self.cases)))  # every slice
        values, spread = (
            self._of_draws(draws, table, with_truth, sums, linear) for draws in (once, self.draws)
        )
        octaves = scores.invented_by_octave(np.sum(sums, 0)) if sums else ()
        return _Scored(
            values={key: float(value[0]) for key, value in values.items()},
            intervals={key: _interval(value) for key, value in spread.items()},
            octaves=tuple(float(value) for value in octaves),
            by_slice={
                case.where: dict(zip(OF_SLICES, row.tolist(), strict=True))
                for case, row in zip(self.cases, table, strict=True)
            },
            psnr=table[:, 0],
        )

    def _of_slice(self, restored: np.ndarray, truth: np.ndarray) -> list[float]:
        functions = (scores.psnr, scores.si_psnr, scores.ssim)
        return [one(restored, truth, data_range=self.data_range) for one in functions]

    def _of_draws(
        self,
        draws: np.ndarray,
        of_slices: np.ndarray,
        with_truth: list[np.ndarray],
        sums: list[np.ndarray],
        linear: list[np.ndarray],
    ) -> dict[str, np.ndarray]:
        """All scores of every draw of slices: (D, S) numbers of times -> (D,) each."""
        with np.errstate(invalid="ignore"):  # the PSNR of what is restored exactly is ∞
            means = draws @ of_slices / draws.sum(1, keepdims=True)
        found = dict(zip(OF_SLICES, means.T, strict=True))
        curves = scores.frc(np.tensordot(draws, np.stack(with_truth), 1))  # (D, R)
        finest = [scores.resolution(curve, pixel=self.pixel) for curve in curves]
        found["resolution"] = np.array(finest)
        for name, function, parts in (
            ("gap", scores.gap, sums),
            ("linear_gap", scores.gap, linear),
            ("invented", scores.invented, sums),
        ):
            found[name] = (
                function(np.tensordot(draws, np.stack(parts), 1))
                if parts
                else np.full(len(draws), np.nan)
            )
        return found


def _restored(name: str, restore: Restore, degraded: np.ndarray, truth: np.ndarray) -> np.ndarray:
    restored = np.asarray(restore(degraded), np.float64)
    if restored.shape != truth.shape:
        raise ValueError(
            f"{name} made {restored.shape} of {degraded.shape}, and the truth is {truth.shape}; "
            "wanted images of the size of the truth"
        )
    return restored


def plane_of(degraded: np.ndarray) -> np.ndarray:
    """The slice itself, of a stack the middle one."""
    return degraded if degraded.ndim == 2 else degraded[len(degraded) // 2]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("restored by")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(values: np.ndarray) -> Interval:
    if not np.isfinite(values).all():
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, ((1 - SHARE) / 2, (1 + SHARE) / 2))
    return float(low), float(high)


def _shown(name: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    digits = {"psnr": 2, "si_psnr": 2, "resolution": 1, "octave": 2}.get(name, 3)
    return f"{value:.{digits}f}"


def _difference(row: Row) -> tuple[str, str]:
    if row.difference is None or row.difference_interval is None:
        return ("best" if row.classical else "–"), ""
    low, high = row.difference_interval
    return f"{row.difference:+.2f}", f"{low:+.2f} to {high:+.2f}"

"""A restoration judged: beside classical filters, on blank images, and on the worst place of all.

Filters are tuned on slices of their own, as the restoration was trained on others than are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from em_train.engine.jsonable import blank_nan
from em_train.engine.progress import say
from em_train.judge.truth import Protocol
from em_train.look import pictures
from em_train.restore.baselines import Baseline, background, denoising, sampling, tune
from em_train.restore.cases import restorer, slices_of
from em_train.restore.comparison import Case, Comparison, Restore, compare, plane_of
from em_train.restore.run import RestoreRun, open_run
from em_train.restore.scores import Blank, blank_contrast

OPTIONS = ("target", "baselines", "seed")  # of the command, beside those of every recipe
PANEL_VX = 256  # side of the square that is shown
NAMED = 8  # slices in a line, at most
RUN = "run"  # name of the restoration that is judged


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores, and how they came about."""

    comparison: Comparison
    blank: Mapping[str, Blank]
    """What the run, and the best classical filter, make of blank images."""
    protocol: dict[str, Any]
    panels: Sequence[tuple[str, np.ndarray]]
    """Of the square that is farthest from the truth: degraded, restored, truth and difference."""

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        blank = [{"of": name} | one._asdict() for name, one in self.blank.items()]
        found = {"protocol": self.protocol, **self.comparison.as_json(), "blank": blank}
        return dict(blank_nan(found))

    def show(self) -> None:
        """Print the tables, and what is made of blank images."""
        self.comparison.show()
        for name, one in self.blank.items():
            Console(soft_wrap=True).print(
                f"{name}: contrast of a flat image {one.flat:.3f}, of white noise {one.noise:.3f}, "
                "where that of the truth is 1",
                highlight=False,
            )

    def save_picture(self, path: Path) -> None:
        """Write the panels as PNG."""
        pictures.save_row(pictures.enlarged(self.panels), path)


def evaluate(
    run: Path,
    fit: tuple[str, Sequence[str]],
    score: tuple[str, Sequence[str]] | None,
    protocol: Protocol,
    *,
    at_nm: tuple[float, float, float] | None = None,
    grey: str = "auto",
    target: str | None = None,
    baselines: bool = True,
) -> Evaluation:
    """Judge a run beside classical filters, on slices that nothing was chosen on.

    Args:
        run: folder of the run.
        fit: address of a volume or collection, without labels. With a target it is restored; without
            one it is the truth of damaged copies.
        score: not for restoration: the slices to score are of the same volume.
        protocol: which slices filters are tuned on (`fit_z`) and which are scored (`score_z`).
        at_nm: not for restoration, whose scale is that of the run.
        grey: which grey values become 0 and 1, as `em_train.engine.grey.choose` takes it.
        target: address of what the result should look like.
        baselines: also tune and score classical filters.
    """
    if fit[1] or score or at_nm:
        raise ValueError(
            "a restoration is compared with the image itself, or with --target, at the scale of the "
            "run; leave --labels, --score-data and --at-nm out"
        )
    stored = open_run(run)
    data = stored.data
    if data.learn_from in ("noise", "neighbours") and target is None:
        raise ValueError(
            f"{run} learned from noise alone, so what is clean is not known; name a better scan with "
            "--target"
        )
    found = slices_of(stored, run, fit[0], target, protocol, grey)
    say(f"grey    {found.grey}")
    filters = filters_of(stored) if baselines else []
    tuned = f"filters are tuned on {listed(found.choose)}; " if filters else ""
    say(f"        {tuned}scored are {listed(found.score)}")
    described = {"data": fit[0], "target": target, "grey": found.grey, "task": data.task}
    return judge(
        restorer(stored),
        found.choose if filters else [],
        found.score,
        filters,
        pixel_nm=found.pixel_nm,
        protocol=described,
        seed=protocol.seed,
    )


def filters_of(stored: RestoreRun) -> list[Baseline]:
    """The classical filters for a task."""
    if stored.factor > 1:
        return sampling(stored.factor)
    return background() if stored.data.task == "background" else denoising()


def listed(cases: Sequence[Case]) -> str:
    """Where slices lie, in a line."""
    names = [case.where for case in cases]
    return ", ".join(names if len(names) <= NAMED else [*names[:2], f"… {names[-1]}"])


def judge(
    restore: Restore,
    choose: Sequence[Case],
    score: Sequence[Case],
    filters: Sequence[Baseline] = (),
    *,
    known: bool = True,
    pixel_nm: float | None = None,
    protocol: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare a restoration with the truth and with classical filters.

    Args:
        restore: takes `Case.degraded` and returns (Y, X).
        choose: slices that the settings of filters are chosen on; none of those scored.
        score: slices that nothing was chosen on.
        filters: of `em_train.restore.baselines`; with none of them, `choose` may be empty.
        known: whether settings are chosen with the truth; without it only filters of noise can be.
        pixel_nm: side of a pixel, for resolutions in nm.
        protocol: whatever else is to be kept beside the scores.
        seed: of the draws for intervals and of the noise in blank images.
    """
    both = {case.where for case in choose} & {case.where for case in score}
    if both:
        raise ValueError(
            f"{', '.join(sorted(both))}: both to choose settings on and to score; give slices apart "
            "from each other"
        )
    grey = np.concatenate([case.truth.ravel() for case in score])
    mean, contrast = float(grey.mean()), float(grey.std())
    if contrast == 0:
        raise ValueError("the truth of all scored slices is flat; score slices that show something")
    planes, truths = ([plane_of(one.degraded) for one in choose], [one.truth for one in choose])
    tuned = tune(filters, planes, truths if known else None) if filters else []
    classical = {one.name: one for one in tuned}
    found = compare(score, {RUN: restore}, classical, pixel_nm=pixel_nm, seed=seed)
    judged: dict[str, Restore] = {RUN: restore}
    if found.best_classical is not None:
        judged[found.best_classical] = classical[found.best_classical]
    blank = {
        name: blank_contrast(one, score[0].degraded.shape, mean=mean, contrast=contrast, seed=seed)
        for name, one in judged.items()
    }
    described = dict(protocol or {}) | {
        "choose": [case.where for case in choose],
        "settings_by": ("psnr" if known else "j-invariance") if filters else None,
    }
    return Evaluation(
        comparison=found, blank=blank, protocol=described, panels=_panels(score, judged)
    )


def _panels(
    cases: Sequence[Case], restorers: Mapping[str, Restore]
) -> list[tuple[str, np.ndarray]]:
    """The square in which the run is farthest from the truth, as all of them show it."""
    worst, error, place = cases[0], -1.0, (0, 0)
    for case in cases:
        squares = (restorers[RUN](case.degraded) - case.truth) ** 2
        for y in _starts(squares.shape[0]):
            for x in _starts(squares.shape[1]):
                here = float(squares[y : y + PANEL_VX, x : x + PANEL_VX].mean())
                if here > error:
                    worst, error, place = case, here, (y, x)
    part = tuple(slice(start, start + PANEL_VX) for start in place)
    degraded = plane_of(worst.degraded)
    times = max(1, worst.truth.shape[0] // degraded.shape[0])  # coarse pixels as squares
    degraded = degraded.repeat(times, 0).repeat(times, 1)
    made = {name: one(worst.degraded) for name, one in restorers.items()}
    shown = {f"degraded, {worst.where}": degraded, **made, "truth": worst.truth}
    panels = [(title, _grey(image[part])) for title, image in shown.items()]
    difference = _grey(0.5 + (made[RUN] - worst.truth)[part])
    return [*panels, ("run minus truth, grey is none", difference)]


def _starts(size: int) -> list[int]:
    return sorted({*range(0, size - PANEL_VX, PANEL_VX), max(0, size - PANEL_VX)})


def _grey(image: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)

"""`emtrain evaluate` for runs of segment: scores with intervals on slices that nothing was chosen on.

The thresholds are those that the run chose on its own held-out slices, stored in `classes.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, Labels, Region, Split, grey_range, open_volume
from em_data.geometry import intersect
from rich import box
from rich.console import Console
from rich.table import Table

from em_train.engine.jsonable import blank_nan
from em_train.engine.progress import say
from em_train.judge.truth import Protocol
from em_train.segment.data import DataConfig
from em_train.segment.instances import (
    InstanceScore,
    Overlaps,
    Subject,
    divide,
    judge_instances,
    overlaps,
)
from em_train.segment.labels import Classes, open_labels, parse
from em_train.segment.metrics import SCORES, ClassScore
from em_train.segment.report import Case, examine, save_case
from em_train.segment.run import open_run
from em_train.segment.validation import Window, choose_windows, slices_of

OPTIONS = ("instances",)  # of the command, beside those of every recipe
INSTANCE_SCORES = {
    "voi_split": "VOI, cut (bits)",
    "voi_merge": "VOI, joined (bits)",
    "rand_error": "adapted Rand error",
    "instances": "true instances",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of every class and the protocol."""

    classes: tuple[ClassScore, ...]
    instances: Mapping[str, InstanceScore]
    """Of what was asked for with `--instances`."""
    protocol: dict[str, Any]
    worst: Case
    best: Case

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "protocol": self.protocol,
            "classes": [one.as_json() for one in self.classes],
            "instances": [
                {"of": text} | blank_nan(asdict(one)) for text, one in self.instances.items()
            ],
        }

    def show(self) -> None:
        """Print the scores with their intervals, and the Dice of every slice."""
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("score")
        for one in self.classes:
            table.add_column(one.name, justify="right")
        for name in SCORES:
            cells = [
                f"{one.scores[name]:.3f} ({one.intervals[name][0]:.3f} to {one.intervals[name][1]:.3f})"
                for one in self.classes
            ]
            table.add_row(name, *cells)
        table.add_row(
            "average precision", *(f"{one.average_precision:.3f}" for one in self.classes)
        )
        table.add_row(
            "threshold", *(f"{one.threshold:.2f}" for one in self.classes), end_section=True
        )
        for where in self.classes[0].slices:
            table.add_row(
                f"dice, {where}", *(f"{one.slices[where]['dice']:.3f}" for one in self.classes)
            )
        Console(soft_wrap=True).print(table)
        if self.instances:
            table = Table(box=box.SIMPLE_HEAD)
            table.add_column("instances within slices")
            for text in self.instances:
                table.add_column(text, justify="right")
            for key, name in INSTANCE_SCORES.items():
                values = [getattr(one, key) for one in self.instances.values()]
                table.add_row(
                    name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)
                )
            Console(soft_wrap=True).print(table)

    def save_picture(self, path: Path) -> None:
        """Write the worst square as PNG, and the best beside it."""
        save_case(self.worst, path)
        save_case(self.best, path.with_stem(f"{path.stem}-best"))


def evaluate(
    run: Path,
    fit: tuple[str, Sequence[str]],
    score: tuple[str, Sequence[str]] | None,
    protocol: Protocol,
    *,
    at_nm: tuple[float, float, float] | None = None,
    instances: Sequence[str] = (),
) -> Evaluation:
    """Compare what a run says about a volume with labels.

    Args:
        run: folder of the run.
        fit: address of the raw volume, and its labels as for `emtrain segment`; by default, those of
            the run, where it is a volume of the run or has label images of these names.
        score: not for segmentation, where nothing is left to fit.
        protocol: `score_z` and `slices` of it: which slices, all labelled ones without it.
        at_nm: voxel size instead of that of the run.
        instances: names of classes whose instances are judged, or between: and a name, see `divide`.
    """
    if score is not None or protocol.fit_z is not None:
        raise ValueError(
            "a segmentation has nothing to fit: leave --fit-z and --score-data out, and give the "
            "volume with --data and its slices with --score-z"
        )
    stored = open_run(run)
    data = stored.data if at_nm is None else replace(stored.data, at_nm=at_nm)
    volume = open_volume(fit[0], at_nm=data.at_nm)
    known, own = [Path(one).resolve() for one in data.volumes], Path(fit[0]).resolve()
    trained = own in known
    options = fit[1] or labels_of(data, known.index(own) if trained else 0)
    if not (fit[1] or trained or all(parse(one).address in volume.label_names for one in options)):
        raise ValueError(
            f"{fit[0]} is not what {run} was trained on; name its labels with --labels, as NAME=ADDRESS"
        )
    (labels,), classes = open_labels(
        [volume],
        options,
        at_nm=data.at_nm,
        ignore=data.ignore,
        exclusive=data.exclusive,
    )
    if classes.names != stored.names:
        raise ValueError(
            f"{run} knows {', '.join(stored.names)}, the labels are {', '.join(classes.names)}; "
            "give the same classes in the same order, as NAME=ADDRESS"
        )
    dividing = {
        text: Dividing(Subject.of(text, classes.names), labels, classes) for text in instances
    }
    everything = labels.covered
    if protocol.score_z is not None:
        first, end = protocol.score_z
        if not 0 <= first < end <= volume.shape[0]:
            raise ValueError(
                f"--score-z is {first}:{end}; {volume.source} has slices 0:{volume.shape[0]}"
            )
        slab = Box((first, 0, 0), (end - first, *volume.shape[1:]))
        everything = tuple(part for one in everything if (part := intersect(one, slab)))
        if not everything:
            raise ValueError(f"no slice of --score-z {first}:{end} is labelled; give others")
    region = Region(everything, everything)
    split = Split((region,), (region,), (everything,))
    windows = choose_windows(
        [volume], [grey_range(volume)], [labels], classes, split, protocol.slices
    )
    check_scored(windows, classes)
    if trained and protocol.score_z is None:
        say(
            f"{fit[0]} was trained on: scores of all its slices flatter; choose some with --score-z"
        )

    def look(window: Window, found: np.ndarray) -> None:
        for one in dividing.values():
            one.add(window, found)

    result, worst, best = examine(
        stored.network,
        windows,
        classes.names,
        stored.thresholds,
        stored.loss,
        stored.device,
        stored.precision,
        seen=look,
    )
    described = {
        "data": volume.source,
        "labels": list(options),
        "score_z": protocol.score_z,
        "slices": slices_of(windows),
    }
    judged = {text: judge_instances(one.overlaps) for text, one in dividing.items()}
    return Evaluation(
        classes=tuple(result), instances=judged, protocol=described, worst=worst, best=best
    )


def labels_of(data: DataConfig, number: int) -> list[str]:
    """The labels of one volume of a run, as `--labels` takes them."""
    given: dict[str, list[str]] = {}
    for option in data.labels:
        given.setdefault(parse(option).name, []).append(option)
    return [own[number] if len(own) > 1 else own[0] for own in given.values()]


class Dividing:
    """Gathers what the instances of a class, or those between it, have in common with the true ones."""

    def __init__(self, wanted: Subject, labels: Labels, classes: Classes) -> None:
        self.wanted, self.labels, self.classes = wanted, labels, classes
        self.overlaps: list[Overlaps] = []

    def add(self, window: Window, found: np.ndarray) -> None:
        """Take a slice, and what was found in it: (C, Y, X) bool."""
        channel = self.wanted.channel
        stored = self.labels.read(window.box)[0 if self.classes.values else channel, 0]
        true, known = (one[channel, 0].numpy() for one in (window.truth, window.known))
        labels = np.where(true, stored, 0)
        pair = divide(found[channel], labels, known, between=self.wanted.between)
        self.overlaps.append(overlaps(*pair))


def check_scored(windows: Sequence[Window], classes: Classes) -> None:
    """Say which classes are not there to be found, and refuse slices that have none at all."""
    where = ", ".join(slices_of(windows))
    missing = [
        name
        for c, name in enumerate(classes.names)
        if not any(window.truth[c].any() for window in windows)
    ]
    if len(missing) == len(classes.names):
        raise ValueError(
            f"no voxel of class {' or '.join(map(repr, missing))} in the scored slices ({where}); score "
            "others with --score-z"
        )
    for name in missing:
        say(
            f"class {name!r} has no voxel in the scored slices ({where}): only what is invented counts"
        )

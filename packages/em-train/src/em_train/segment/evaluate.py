"""`emtrain evaluate` for runs of segment: scores with intervals on slices that nothing was chosen on.

The thresholds are those that the run chose on its own held-out slices, stored in `classes.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, Region, Split, open_images
from em_data.formats.images import SCHEME as IMAGES
from em_data.formats.images import some
from em_data.formats.options import split_options
from em_data.geometry import intersect
from rich import box
from rich.console import Console
from rich.table import Table

from em_train.engine.grey import choose
from em_train.engine.jsonable import blank_nan
from em_train.engine.progress import say
from em_train.engine.reading import is_collection, open_raw
from em_train.judge.labels import parse
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
from em_train.segment.labels import Classes, open_image_labels, open_labels
from em_train.segment.metrics import SCORES, ClassScore
from em_train.segment.parting import Parting
from em_train.segment.report import Case, examine, save_case
from em_train.segment.run import StoredRun, open_run
from em_train.segment.validation import (
    Window,
    are_images,
    choose_image_windows,
    choose_windows,
    slices_of,
)

OPTIONS = ("instances", "neck")  # of the command, beside those of every recipe
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
    grey: str = "auto",
    instances: Sequence[str] = (),
    neck: float | None = None,
) -> Evaluation:
    """Compare what a run says about a volume with labels.

    Args:
        run: folder of the run.
        fit: address of the raw volume, and its labels as for `emtrain segment`; by default, those of
            the run, where it is a volume of the run or has label images of these names.
        score: not for segmentation, where nothing is left to fit.
        protocol: `score_z` and `slices` of it: which slices, all labelled ones without it.
        at_nm: voxel size instead of that of the run.
        grey: which grey values become 0 and 1, as `em_train.engine.grey.choose` takes it.
        instances: names of classes whose instances are judged, or between: and a name, see `divide`.
        neck: where predicted instances that touch are parted, see `Parting`; without it they are not.
    """
    if score is not None or protocol.fit_z is not None:
        raise ValueError(
            "a segmentation has nothing to fit: leave --fit-z and --score-data out, and give the "
            "volume with --data and its slices with --score-z"
        )
    stored = open_run(run)
    data = stored.data if at_nm is None else replace(stored.data, at_nm=at_nm)
    windows_of = windows_of_collection if is_collection(fit[0]) else windows_of_volume
    windows, classes, described = windows_of(run, stored, data, fit, protocol, grey)
    check_scored(windows, classes, described)
    if neck is not None and not instances:
        raise ValueError("--neck parts instances, and none are judged; name them with --instances")
    dividing = {}
    for text in instances:
        subject = Subject.of(text, classes.names)
        parting = None if neck is None else Parting(subject=subject, neck=neck)
        dividing[text] = Dividing(subject, classes, parting)

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
    judged = {text: judge_instances(one.overlaps) for text, one in dividing.items()}
    described |= {} if neck is None else {"neck": neck}
    return Evaluation(
        classes=tuple(result), instances=judged, protocol=described, worst=worst, best=best
    )


Scored = tuple[list[Window], Classes, dict[str, Any]]  # what is scored, and the protocol in words


def windows_of_volume(
    run: Path,
    stored: StoredRun,
    data: DataConfig,
    fit: tuple[str, Sequence[str]],
    protocol: Protocol,
    grey: str,
) -> Scored:
    """The slices of a volume that are scored."""
    volume = open_raw(fit[0], data, data.at_nm)
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
        names=stored.names,
    )
    check_names(run, stored, classes)
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
    chosen = choose(run, volume, grey)
    say(f"grey    {chosen}")
    windows = choose_windows([volume], [chosen.range], [labels], classes, split, protocol.slices)
    if trained and protocol.score_z is None:
        say(
            f"{fit[0]} was trained on: scores of all its slices flatter; choose some with --score-z"
        )
    described = {
        "data": volume.source,
        "labels": list(options),
        "score_z": protocol.score_z,
        "slices": slices_of(windows),
        "grey": chosen.ends,
    }
    return windows, classes, described


def windows_of_collection(
    run: Path,
    stored: StoredRun,
    data: DataConfig,
    fit: tuple[str, Sequence[str]],
    protocol: Protocol,
    grey: str,
) -> Scored:
    """All images of a collection, each with grey values of its own where not said otherwise."""
    if protocol.score_z is not None:
        raise ValueError(
            "--score-z chooses slices of a volume, and these are images; choose some in the address, "
            "such as images:FOLDER?take=120:160"
        )
    images = open_images(fit[0]).treating(data.nan)
    learned = [one for one in data.volumes if is_collection(one)]
    trained = bool(learned) and folder_of(learned[0]) == folder_of(fit[0])
    options = list(fit[1] or (data.labels if trained else ()))
    if not options:
        raise ValueError(
            f"{fit[0]} is not what {run} was trained on; name its labels with --labels, as "
            "NAME=images:FOLDER"
        )
    labels, classes = open_image_labels(
        images, options, ignore=data.ignore, exclusive=data.exclusive, names=stored.names
    )
    check_names(run, stored, classes)
    say(f"data    {images}")
    windows = choose_image_windows(
        images, labels, classes, None, lambda volume: choose(run, volume, grey).range
    )
    if trained and (seen := int(np.isin(images.names, open_images(learned[0]).names).sum())):
        say(
            f"{seen} of {len(images)} images were trained on, or weights and thresholds were chosen on "
            "them: their scores flatter; score others, for instance with ?take=A:B"
        )
    described = {"data": fit[0], "labels": options, "images": slices_of(windows), "grey": grey}
    return windows, classes, described


def folder_of(address: str) -> Path:
    """Where a collection lies, whatever of it is taken."""
    place, _ = split_options(address.removeprefix(IMAGES))
    return Path(place).resolve()


def check_names(run: Path, stored: StoredRun, classes: Classes) -> None:
    """Refuse labels of other classes than those that a run knows."""
    if classes.names != stored.names:
        raise ValueError(
            f"{run} knows {', '.join(stored.names)}, the labels are {', '.join(classes.names)}; "
            "give the same classes in the same order, as NAME=ADDRESS"
        )


def labels_of(data: DataConfig, number: int) -> list[str]:
    """The labels of one volume of a run, as `--labels` takes them."""
    given: dict[str, list[str]] = {}
    for option in data.labels:
        given.setdefault(parse(option).called, []).append(option)
    return [own[number] if len(own) > 1 else own[0] for own in given.values()]


class Dividing:
    """Gathers what the instances of a class, or those between it, have in common with the true ones."""

    def __init__(self, wanted: Subject, classes: Classes, parting: Parting | None = None) -> None:
        self.wanted, self.classes, self.parting = wanted, classes, parting
        self.overlaps: list[Overlaps] = []

    def add(self, window: Window, found: np.ndarray) -> None:
        """Take a slice, and what was found in it: (C, Y, X) bool."""
        channel = self.wanted.channel
        assert window.labels is not None
        stored = window.labels.read(window.box)[0 if self.classes.values else channel, 0]
        true, known = (one[channel, 0].numpy() for one in (window.truth, window.known))
        is_border = self.classes.names[channel] in self.classes.borders
        labels = true if is_border else np.where(true, stored, 0)
        predicted, truth = divide(found[channel], labels, known, between=self.wanted.between)
        if self.parting is not None:
            predicted = self.parting(found)
        self.overlaps.append(overlaps(predicted, truth))


def check_scored(windows: Sequence[Window], classes: Classes, described: Mapping[str, Any]) -> None:
    """Say which classes are not there to be found, and refuse slices that have none at all."""
    where, what = some(slices_of(windows)), "images" if are_images(windows) else "slices"
    missing = [
        name
        for c, name in enumerate(classes.names)
        if not any(window.truth[c].any() for window in windows)
    ]
    if len(missing) == len(classes.names):
        raise ValueError(
            f"no voxel of class {' or '.join(map(repr, missing))} in the scored {what} ({where}) of "
            f"{described['data']}, labelled by {', '.join(described['labels'])}; score others"
            + (" with --score-z" if what == "slices" else "")
        )
    for name in missing:
        say(
            f"class {name!r} has no voxel in the scored {what} ({where}): only what is invented counts"
        )

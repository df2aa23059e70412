"""`emtrain probe`: what can be read from the frozen features of a run, against what needs no learning.

Patches of the slices to fit teach a plane, or a small perceptron, for each class; patches of other
slices are scored. Which patches, their labels and the readout are the same for every method, and the
whole is repeated with several seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from em_data import Box, Volume, grey_range, open_volume
from em_data.geometry import Int3, int3
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from em_train.engine.jsonable import blank_nan
from em_train.engine.progress import say
from em_train.features.frozen import FrozenRun
from em_train.features.open import open_run
from em_train.features.patches import bank_maps, places, raw_patches
from em_train.features.slab import Slab, patch_grid
from em_train.judge.ranges import fit_and_score, overlap
from em_train.judge.readout import HIDDEN, average_precision, best_threshold, dice, fit_readout
from em_train.judge.truth import Truth, open_truth

FITTED_SHARE = 0.5  # of the patches to fit, drawn anew with every seed; the others give thresholds
FITTED = 4000  # of them at most
READOUTS = {"linear": 0, "perceptron": HIDDEN}


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Which patches are fitted and scored, and how they are labelled."""

    fit_z: tuple[int, int] | None = None
    """Slices [first, end) to fit. Without it, the first 60 % of those with labels, apart from those to
    score."""
    score_z: tuple[int, int] | None = None
    """Slices [first, end) to score. Without it, the last 30 % of those with labels, apart from those to
    fit."""
    patch_vx: Int3 | None = None
    """Size of the patches, for runs of dense-ssl; runs of mae have their own."""
    layers: tuple[int, ...] = (-1,)
    """Layers of the encoder of a mae run: 0 is before the first block, −1 after the last."""
    label: str = "majority"
    """majority: a patch has the class of most of its voxels. A share such as 0.25: it has every class
    that so many of its voxels have."""
    window_vx: int = 512
    """Side of the part in the middle of the slices that is looked at."""
    seeds: int = 3
    """How often it is repeated."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.window_vx < 1 or not self.layers:
            raise ValueError(f"{self}: wanted at least one seed, one voxel and one layer")
        self.share()

    def share(self) -> float | None:
        """The share of a patch from which on it has a class; None for the majority."""
        if self.label == "majority":
            return None
        try:
            share = float(self.label)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            raise ValueError(
                f"--label is {self.label!r}; wanted majority, or a share of the patch such as 0.25"
            )
        return share


class Method(NamedTuple):
    """Vectors of the patches to fit and to score: (D, z, y, x) each."""

    name: str
    fit: Tensor
    score: Tensor
    position_r2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well one class is read from the features of one method: a value for each seed."""

    dice: tuple[float, ...]
    iou: tuple[float, ...]
    average_precision: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One method, read out in one way."""

    method: str
    readout: str
    classes: dict[str, Score]
    mean_dice: tuple[float, ...]
    """Over the classes without the first, the rest; a value for each seed."""
    position_r2: float | None = None
    """How well the place in the crop is read from the features of one patch."""


@dataclass(frozen=True, kw_only=True)
class Probing:
    """All results and how they came about."""

    results: tuple[Result, ...]
    names: tuple[str, ...]
    conditions: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """All of it for a file, NaN as None."""
        rows = [blank_nan(asdict(result)) for result in self.results]
        return {"conditions": self.conditions, "classes": list(self.names), "rows": rows}


def probe(
    run: Path,
    address: str,
    labels: Sequence[str],
    config: ProbeConfig,
    *,
    beside: Sequence[Path] = (),
    baselines: bool = True,
) -> Probing:
    """Read labels from the features of a run and of what it is compared with.

    Args:
        run: folder of a run that has features: of mae or dense-ssl.
        address: raw volume.
        labels: its labels, as `emtrain evaluate` takes them.
        config: which patches, and how they are labelled.
        beside: other runs, read at the same patches.
        baselines: whether to make the baselines as well.
    """
    first = open_run(run)
    volume = first.open(address)
    patch = int3(first.patch_vx or config.patch_vx or (1, 8, 8))
    runs = [("run", first), *((path.name, open_run(path)) for path in beside)]
    for name, one in runs:
        if one.patch_vx and one.patch_vx != patch:
            raise ValueError(
                f"{name} has patches of {one.patch_vx} voxels, and those that are compared have "
                f"{patch}; "
                + (
                    "give runs with patches of one size"
                    if first.patch_vx
                    else f"take its own with --patch {','.join(map(str, one.patch_vx))}"
                )
            )
    truth = open_truth(volume, labels, beside=open_volume(address))
    fit, score = slabs(volume, truth, patch, config)
    sides = [patch_labels(slab, truth, config.share()) for slab in (fit, score)]
    if not all(bool(known.any()) for _, known in sides):
        raise ValueError("no patch of the slices to fit, or to score, is labelled all over")
    for option, (present, known) in zip(("--fit-z", "--score-z"), sides, strict=True):
        check_classes(present & known, truth.names, option)
    methods: list[Method] = []
    for name, one in runs:
        same = one.open(address)
        if same.shape != volume.shape or same.voxel_size_nm != volume.voxel_size_nm:
            raise ValueError(
                f"{name} reads voxels of {same.voxel_size_nm} nm, the first run {volume.voxel_size_nm}; "
                "patches can only be compared at one scale"
            )
        methods += _features(name, one, fit, score, config)
        if baselines:
            methods += _features(f"{name}, untrained", one.untrained(0), fit, score, config)
    if baselines:
        methods += [
            Method("raw patches, principal components", *raw_patches(fit, score)),
            Method("filter bank, pooled", bank_maps(fit), bank_maps(score)),
            Method("position only", places(fit), places(score)),
        ]
    results = []
    for method in methods:
        for readout in READOUTS:
            results.append(_judge(method, readout, sides, truth.names, config))
        say(f"probe   {method.name}: mean Dice {statistics.mean(results[-2].mean_dice):.3f}")
    conditions = asdict(config) | {
        "volume": volume.source,
        "voxel_size_nm": volume.voxel_size_nm,
        "patch_vx": patch,
        "fit_patches": int(sides[0][1].sum()),
        "score_patches": int(sides[1][1].sum()),
        "fit": [fit.origin, fit.size],
        "score": [score.origin, score.size],
    }
    return Probing(results=tuple(results), names=truth.names, conditions=conditions)


def _features(
    name: str, run: FrozenRun, fit: Slab, score: Slab, config: ProbeConfig
) -> list[Method]:
    """Features of a run, one method for each layer."""
    layers = config.layers if run.layered else (-1,)
    maps = zip(layers, run.maps(fit, layers), run.maps(score, layers), strict=True)
    return [
        Method(
            name if len(layers) == 1 else f"{name}, layer {layer}",
            fitted,
            scored,
            run.knows_where(fit.volume, layer, seed=0),
        )
        for layer, fitted, scored in maps
    ]


def slabs(volume: Volume, truth: Truth, patch: Int3, config: ProbeConfig) -> tuple[Slab, Slab]:
    """The patches to fit and to score: those that lie wholly in their slices."""
    labelled, grey, grid = truth.slices(), grey_range(volume), patch_grid(volume, patch)
    fit_z, score_z = fit_and_score(labelled, config.fit_z, config.score_z, truth.told(volume))
    side = [min(n, max(1, config.window_vx // p)) for n, p in zip(grid[1:], patch[1:], strict=True)]
    start = [(n - s) // 2 for n, s in zip(grid[1:], side, strict=True)]
    found = []
    for option, (first, end) in (("--fit-z", fit_z), ("--score-z", score_z)):
        low, high = -(-first // patch[0]), min(end // patch[0], grid[0])
        if low >= high:
            raise ValueError(
                f"{option} is {first}:{end}, which holds no patch; labels are there for slices "
                f"{labelled.start}:{labelled.stop}, and a patch takes {patch[0]} of them, beginning at "
                f"a multiple of {patch[0]}"
            )
        origin, size = int3([low, *start]), int3([high - low, *side])
        found.append(Slab(volume, grey, patch, origin, size))
    fit, score = found
    if overlap(*((one.origin[0], one.origin[0] + one.size[0]) for one in found)):
        raise ValueError(
            f"slices {fit_z[0]}:{fit_z[1]} to fit and {score_z[0]}:{score_z[1]} to score share "
            "patches; give ranges apart from each other"
        )
    return fit, score


def patch_labels(slab: Slab, truth: Truth, share: float | None) -> tuple[Tensor, Tensor]:
    """Which classes each patch has (C, z, y, x), and which patches are labelled all over (z, y, x)."""
    (pz, py, px), shown, classes = slab.patch_vx, slab.box, len(truth.names)
    counts = np.zeros((classes, *slab.size), np.int64)
    for z in range(shown.size_vx[0]):
        at = shown.origin_vx
        (plane,) = truth.read(Box((at[0] + z, *at[1:]), (1, *shown.size_vx[1:])))
        for number in range(classes):
            inside = (plane == number).reshape(slab.size[1], py, slab.size[2], px)
            counts[number, z // pz] += inside.sum((1, 3))
    whole = torch.from_numpy(counts)
    known = whole.sum(0) == pz * py * px
    if share is None:
        most = whole.argmax(0)
        return torch.stack([most == number for number in range(classes)]), known
    return whole >= share * pz * py * px, known


def check_classes(present: Tensor, names: Sequence[str], option: str) -> None:
    """Refuse slices none of whose patches (C, z, y, x) has a class; say which classes are missing."""
    missing = [n for n, there in zip(names[1:], present[1:], strict=True) if not there.any()]
    if not missing:
        return
    words = f"no patch of the slices of {option} counts as {', '.join(missing)}"
    if len(missing) == len(names) - 1:
        raise ValueError(
            f"{words}; choose other slices, or a smaller share of a patch with --label"
        )
    say(f"probe   {words}")


def _judge(
    method: Method,
    readout: str,
    sides: Sequence[tuple[Tensor, Tensor]],
    names: Sequence[str],
    config: ProbeConfig,
) -> Result:
    """Fit with every seed, score what was not fitted."""
    (x, y), (test_x, test_y) = (
        (maps[:, known].T, present[:, known].T)  # (N, D), (N, C)
        for maps, (present, known) in zip(method[1:3], sides, strict=True)
    )
    per_seed: list[list[tuple[float, float, float]]] = []
    for seed in range(config.seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        chosen, others = order.tensor_split([min(FITTED, math.ceil(FITTED_SHARE * len(x)))])
        own = fit_readout(x[chosen], y[chosen], hidden=READOUTS[readout], seed=seed)
        before, after = own(x[others]), own(test_x)
        rows = []
        for number in range(len(names)):
            threshold = best_threshold(before[:, number], y[others][:, number])
            overlap = dice(after[:, number] >= threshold, test_y[:, number])
            precision = average_precision(after[:, number], test_y[:, number])
            rows.append((overlap, overlap / (2 - overlap), precision))
        per_seed.append(rows)
    classes = {
        named: Score(
            dice=tuple(rows[number][0] for rows in per_seed),
            iou=tuple(rows[number][1] for rows in per_seed),
            average_precision=tuple(rows[number][2] for rows in per_seed),
        )
        for number, named in enumerate(names)
    }
    means = tuple(float(np.nanmean([row[0] for row in rows[1:]])) for rows in per_seed)
    return Result(
        method=method.name,
        readout=readout,
        classes=classes,
        mean_dice=means,
        position_r2=method.position_r2,
    )


def print_probing(probing: Probing) -> None:
    """The methods side by side, means over the seeds; ± is half of their range."""
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("method", "readout", "mean Dice", *probing.names[1:], "position R²"):
        table.add_column(head, no_wrap=True)
    for result in probing.results:
        cells = []
        for name in probing.names[1:]:
            score = result.classes[name]
            three = (score.dice, score.iou, score.average_precision)
            cells.append(" / ".join(f"{statistics.mean(values):.3f}" for values in three))
        spread = (max(result.mean_dice) - min(result.mean_dice)) / 2
        mean = f"{statistics.mean(result.mean_dice):.3f} ± {spread:.3f}"
        where = "" if result.position_r2 is None else f"{result.position_r2:.2f}"
        table.add_row(result.method, result.readout, mean, *cells, where)
    width = 80 + 24 * len(probing.names)
    Console(width=max(width, Console().width), soft_wrap=True).print(table)
    say(
        "of each class: Dice / IoU / average precision. position R²: how well the place of a patch in "
        "the crop is read from its features; near 1, they say where they are, not only what is there"
    )

"""Labels on the voxels of a volume, and the pixels that are fitted and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from em_data import Box, GreyRange, Volume, place_mask
from em_data.geometry import end_of
from em_data.labels import PlacedVolume
from torch import Tensor

from em_train.engine.progress import say
from em_train.judge.labels import (
    BORDERS,
    MAP,
    Specification,
    check_alone,
    names_of,
    open_label,
    parse,
)
from em_train.judge.ranges import check_range

UNLABELLED = -1


CLASSES = "classes"  # label image that synthetic volumes carry


WINDOW_VX = 768  # side of the window in the middle of a slice that is looked at


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which pixels are fitted and scored."""

    fit_z: tuple[int, int] | None = None
    """Slices [first, end) that codes are named and probes trained on. Without it, all labelled ones,
    or the first 60 % where the same volume is scored, apart from those to score."""
    score_z: tuple[int, int] | None = None
    """Slices [first, end) that are scored. Without it, all, or the last 30 % of the same volume, apart
    from those to fit."""
    border_vx: int = 40
    """Pixels at each border of a slice that are left out."""
    grid_vx: int = 4
    """Pixels between those that are looked at."""
    slices: int = 16
    """At most so many slices are fitted and scored, spread evenly over their range."""
    clusters: int = 50
    """Clusters of the baselines; fewer where there are fewer distinct points."""
    seed: int = 0
    """Of the clusterings and of the pixels that probes are trained on."""

    def __post_init__(self) -> None:
        if self.border_vx < 0 or min(self.grid_vx, self.slices) < 1 or self.clusters < 2:
            raise ValueError(
                f"{self}: wanted border_vx ≥ 0, grid_vx and slices ≥ 1, and clusters ≥ 2"
            )


@dataclass(frozen=True)
class Truth:
    """Label volumes on a raw volume: classes 0, 1, …, a later one wins."""

    names: tuple[str, ...]
    layers: tuple[PlacedVolume, ...]
    kind: str = ""  # MAP or BORDERS of one volume; else each volume is a class
    values: tuple[int | None, ...] = ()  # of each volume the one that counts; None: all above 0

    def read(self, box: Box) -> np.ndarray:
        """The class of every voxel of a box of the raw volume, `UNLABELLED` where unknown: (Z, Y, X)."""
        z = range(box.origin_vx[0], end_of(box)[0])
        return np.stack(
            [self._plane(Box((one, *box.origin_vx[1:]), (1, *box.size_vx[1:]))) for one in z]
        )

    def told(self, raw: Volume) -> str:
        """What is labelled, and by what, in words."""
        sources = dict.fromkeys(layer.volume.source for layer in self.layers)
        return f"{raw.source}, labelled by {', '.join(sources)}"

    def slices(self) -> range:
        """The slices that every label volume covers."""
        covered = [layer.covered for layer in self.layers]
        low = max(box.origin_vx[0] for box in covered if box)
        high = min(box.origin_vx[0] + box.size_vx[0] for box in covered if box)
        return range(low, high)

    def _plane(self, box: Box) -> np.ndarray:
        if self.kind == BORDERS:
            return _borders(self.layers[0], box)
        classes = np.full(box.size_vx[1:], UNLABELLED, np.int64)
        for number, layer in enumerate(self.layers):
            values = _nearest(layer, box)
            known = values >= 0
            if self.kind == MAP:
                classes[known] = values[known]
            else:
                wanted = self.values[number] if self.values else None
                classes[known & (classes == UNLABELLED)] = 0
                classes[values > 0 if wanted is None else values == wanted] = number + 1
        return classes


class Pixels(NamedTuple):
    """Slices with the truth at the places that count."""

    planes: list[Tensor]  # (Y, X) in [0, 1]
    classes: Tensor  # (Z, y, x) at every grid_vx-th pixel, UNLABELLED where it does not count
    where: list[tuple[int, int, int]]  # z, y, x of the first pixel of each plane


def open_truth(raw: Volume, options: Sequence[str], beside: Volume) -> Truth:
    """Labels on the voxels of `raw`; the label voxel nearest to a raw voxel counts.

    Args:
        raw: the volume whose voxels are labelled.
        options: labels as `em_train.judge.labels` reads them; without any, the label image `classes`.
            A single address with values above 1 is a map of classes. All others are one class each,
            after `rest`; of instances, whose class is where they meet, after `inside`.
        beside: the volume that label images are stored with.
    """
    if not options and CLASSES not in beside.label_names:
        raise ValueError(
            f"no labels {CLASSES!r} are stored beside {beside.source} (there are: "
            f"{', '.join(beside.label_names) or 'none'}); name label volumes with --labels"
        )
    given = [parse(option) for option in options or [CLASSES]]
    check_alone(given)
    opened = [open_label(one, beside) for one in given]
    layers = tuple(place_mask(raw, volume) for volume in opened)
    first = given[0]
    if first.kind == MAP or (len(given) == 1 and first.bare):
        names = names_of(opened[0])
        if first.kind or len(names) > 2:
            say(f"labels  {Specification(first.address, kind='classes').told(beside)}")
            return Truth(names, layers, MAP)
    for one in given:
        say(f"labels  {one.told(beside)}")
    if first.kind == BORDERS:
        return Truth(("inside", first.called), layers, BORDERS)
    names = ("rest", *(one.called for one in given))
    return Truth(names, layers, values=tuple(one.value for one in given))


def stored_truth(volume: Volume) -> Truth | None:
    """The label image `classes` of a volume, if it has one that lies exactly on its voxels."""
    if CLASSES not in volume.label_names:
        return None
    labels = volume.labels(CLASSES)
    own, other = ((v.shape, v.voxel_size_nm, v.origin_nm) for v in (volume, labels))
    return Truth((), (PlacedVolume(labels, volume.shape),), MAP) if own == other else None


def _nearest(layer: PlacedVolume, box: Box) -> np.ndarray:
    """The label nearest to every pixel of a box of one slice, −1 outside the labels: (Y, X)."""
    (z, y0, x0), (_, y1, x1) = box.origin_vx, end_of(box)
    at_z = int(layer.nearest(0, z, z + 1)[0])
    rows, columns = layer.nearest(1, y0, y1), layer.nearest(2, x0, x1)
    depth, high, wide = layer.volume.shape
    in_rows, in_columns = (rows >= 0) & (rows < high), (columns >= 0) & (columns < wide)
    found = np.full(box.size_vx[1:], UNLABELLED, np.int64)
    if not (0 <= at_z < depth and in_rows.any() and in_columns.any()):
        return found
    y, x = rows[in_rows], columns[in_columns]
    origin = (at_z, int(y.min()), int(x.min()))
    size = (1, int(y.max()) - origin[1] + 1, int(x.max()) - origin[2] + 1)
    values = layer.volume.read(Box(origin, size))[0].astype(np.int64)
    found[np.ix_(in_rows, in_columns)] = values[np.ix_(y - origin[1], x - origin[2])]
    return found


def _borders(layer: PlacedVolume, box: Box) -> np.ndarray:
    """1 where one of the four neighbours belongs to another instance, −1 outside the labels: (Y, X)."""
    (z, *low), (_, *high) = box.origin_vx, end_of(box)
    first = [max(0, a - 1) for a in low]  # with the neighbours of what lies at the edge of the box
    last = [min(n, b + 1) for b, n in zip(high, layer.raw_shape[1:], strict=True)]
    wider = Box((z, first[0], first[1]), (1, last[0] - first[0], last[1] - first[1]))
    instances = _nearest(layer, wider)
    border = np.zeros(instances.shape, np.int64)
    for axis in (0, 1):
        differ = np.diff(instances, axis=axis) != 0
        below = [(0, 0), (0, 0)]
        above = [(0, 0), (0, 0)]
        below[axis], above[axis] = (1, 0), (0, 1)
        border |= np.pad(differ, below) | np.pad(differ, above)
    border[instances < 0] = UNLABELLED
    rows, columns = (slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
    return border[rows, columns]


def choose_slices(
    option: str, wanted: tuple[int, int], raw: Volume, truth: Truth, protocol: Protocol
) -> list[int]:
    """Slices of a range [first, end), evenly spread, all with labels."""
    check_range(option, wanted, truth.slices(), truth.told(raw))
    first, end = wanted
    count = min(protocol.slices, end - first)
    return sorted({int(z) for z in np.linspace(first, end - 1, count).round()})


def read_pixels(
    raw: Volume,
    truth: Truth,
    grey: GreyRange,
    planes: Sequence[int],
    protocol: Protocol,
    border: int,
) -> Pixels:
    """Slices of a volume with their truth; what lies within `border` of the edge does not count."""
    height, width = raw.shape[1:]
    grid = protocol.grid_vx
    high, wide = (min(n, WINDOW_VX + 2 * border) for n in (height, width))
    y0, x0 = (height - high) // 2, (width - wide) // 2
    if min(high, wide) - 2 * border < grid:
        raise ValueError(
            f"slices of {height} × {width} px have no pixels that are {border} px from every border; "
            "lower --border-vx, or take a larger volume"
        )
    images, classes, where = [], [], []
    for z in planes:
        window = Box((z, y0, x0), (1, high, wide))
        images.append(torch.from_numpy(grey.unit(raw.read(window))[0]))
        found = truth.read(window)[0]
        found[:border], found[high - border :] = UNLABELLED, UNLABELLED
        found[:, :border], found[:, wide - border :] = UNLABELLED, UNLABELLED
        classes.append(torch.from_numpy(found[::grid, ::grid].copy()))
        where.append((z, y0, x0))
    pixels = Pixels(images, torch.stack(classes), where)
    if not (pixels.classes >= 0).any():
        raise ValueError(f"no pixel of slices {list(planes)} of {raw.source} is labelled")
    return pixels

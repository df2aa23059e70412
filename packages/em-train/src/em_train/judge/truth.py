"""Labels on the voxels of a volume, and the pixels that are fitted and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from em_data import Box, GreyRange, Volume, open_volume, place_mask
from em_data.formats.legend import read_legend
from em_data.labels import PlacedVolume
from torch import Tensor

from em_train.judge.ranges import check_range

UNLABELLED = -1


BORDERS = "borders:"


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
    borders: bool  # between instances
    whole: bool  # one volume that holds all classes

    def read(self, z: int, height: int, width: int) -> np.ndarray:
        """The class of every pixel of a slice of the raw volume, `UNLABELLED` where unknown."""
        classes = np.full((height, width), UNLABELLED, np.int64)
        for number, layer in enumerate(self.layers):
            values = _nearest(layer, z, height, width)
            if values is None:
                continue
            known = values >= 0
            if self.whole:
                classes[known] = values[known]
            elif self.borders:
                classes[known] = _borders(values)[known]
            else:
                classes[known & (classes == UNLABELLED)] = 0
                classes[values > 0] = number + 1
        return classes

    def slices(self) -> range:
        """The slices that every label volume covers."""
        covered = [layer.covered for layer in self.layers]
        low = max(box.origin_vx[0] for box in covered if box)
        high = min(box.origin_vx[0] + box.size_vx[0] for box in covered if box)
        return range(low, high)


class Pixels(NamedTuple):
    """Slices with the truth at the places that count."""

    planes: list[Tensor]  # (Y, X) in [0, 1]
    classes: Tensor  # (Z, y, x) at every grid_vx-th pixel, UNLABELLED where it does not count
    where: list[tuple[int, int, int]]  # z, y, x of the first pixel of each plane


def open_truth(raw: Volume, addresses: Sequence[str], beside: Volume) -> Truth:
    """Labels on the voxels of `raw`: addresses, or names of label images stored beside a volume.

    One volume with values above 1 is a map of classes. Several, or a single one of 0 and 1, are one
    class each, after `rest`. `borders:` before a volume of instances makes two classes: inside, and
    where the instance changes. The label voxel nearest to a raw voxel counts.
    """
    if not addresses and CLASSES not in beside.label_names:
        raise ValueError(
            f"no labels {CLASSES!r} are stored beside {beside.source} (there are: "
            f"{', '.join(beside.label_names) or 'none'}); name label volumes with --labels"
        )
    addresses = addresses or [CLASSES]
    borders = addresses[0].startswith(BORDERS)
    if borders and len(addresses) > 1:
        raise ValueError(f"{BORDERS} takes one volume of instances; got {len(addresses)} labels")
    opened = []
    for address in addresses:
        name = address.removeprefix(BORDERS)
        stored = name in beside.label_names
        opened.append(beside.labels(name) if stored else open_volume(name))
    for volume in opened:
        if volume.dtype.kind not in "bui":
            raise ValueError(f"{volume.source} holds {volume.dtype}; wanted integer labels")
    layers = tuple(place_mask(raw, volume) for volume in opened)
    if borders:
        return Truth(("inside", "border"), layers, True, False)
    if len(layers) == 1:
        classes = 1 + _largest(opened[0])
        if classes > 2:
            known = read_legend(opened[0].source).classes
            named = tuple(known.get(i, f"class {i}") for i in range(classes))
            return Truth(named, layers, False, True)
    names = [volume.source.rstrip("/").rpartition("/")[2] for volume in opened]
    return Truth(("rest", *names), layers, False, False)


def _largest(volume: Volume) -> int:
    value = max(
        int(volume.read(Box((z, 0, 0), (1, *volume.shape[1:]))).max())
        for z in range(volume.shape[0])
    )
    if value > 255:
        raise ValueError(
            f"{volume.source} holds labels up to {value}; wanted at most 256 classes: for instances, "
            f"write {BORDERS} before it"
        )
    return value


def _nearest(layer: PlacedVolume, z: int, height: int, width: int) -> np.ndarray | None:
    """The label nearest to every pixel of a slice, −1 outside the labels; None if none is inside."""
    at_z = int(layer.nearest(0, z, z + 1)[0])
    rows, columns = layer.nearest(1, 0, height), layer.nearest(2, 0, width)
    depth, high, wide = layer.volume.shape
    in_rows, in_columns = (rows >= 0) & (rows < high), (columns >= 0) & (columns < wide)
    if not (0 <= at_z < depth and in_rows.any() and in_columns.any()):
        return None
    y, x = rows[in_rows], columns[in_columns]
    origin = (at_z, int(y.min()), int(x.min()))
    size = (1, int(y.max()) - origin[1] + 1, int(x.max()) - origin[2] + 1)
    values = layer.volume.read(Box(origin, size))[0].astype(np.int64)
    found = np.full((height, width), UNLABELLED, np.int64)
    found[np.ix_(in_rows, in_columns)] = values[np.ix_(y - origin[1], x - origin[2])]
    return found


def _borders(instances: np.ndarray) -> np.ndarray:
    """1 where one of the four neighbours belongs to another instance: (Y, X)."""
    border = np.zeros(instances.shape, np.int64)
    for axis in (0, 1):
        differ = np.diff(instances, axis=axis) != 0
        below = [(0, 0), (0, 0)]
        above = [(0, 0), (0, 0)]
        below[axis], above[axis] = (1, 0), (0, 1)
        border |= np.pad(differ, below) | np.pad(differ, above)
    return border


def choose_slices(
    option: str, wanted: tuple[int, int], truth: Truth, protocol: Protocol
) -> list[int]:
    """Slices of a range [first, end), evenly spread, all with labels."""
    check_range(option, wanted, truth.slices())
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
        found = truth.read(z, height, width)[y0 : y0 + high, x0 : x0 + wide]
        found[:border], found[high - border :] = UNLABELLED, UNLABELLED
        found[:, :border], found[:, wide - border :] = UNLABELLED, UNLABELLED
        classes.append(torch.from_numpy(found[::grid, ::grid].copy()))
        where.append((z, y0, x0))
    pixels = Pixels(images, torch.stack(classes), where)
    if not (pixels.classes >= 0).any():
        raise ValueError(f"no pixel of slices {list(planes)} of {raw.source} is labelled")
    return pixels

"""The table of the instances of images: where each lies, how large it is, whether the border cuts it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from em_data.geometry import Float3

from em_train.engine.atomic import replacing


class Instance(NamedTuple):
    """One instance of one image; a column each."""

    image: str
    id: int
    area_px: int
    area_nm2: float | None  # None: the size of the pixels is not known
    diameter_px: float  # of the disc of the same area
    diameter_nm: float | None
    centroid_y_px: float
    centroid_x_px: float
    touches_border: bool


def measure(image: str, instances: np.ndarray, size_nm: Float3 | None) -> list[Instance]:
    """The instances of an image in the order of their numbers: (Y, X) integers, 0 is none.

    >>> measure("a", np.array([[0, 1, 1], [0, 0, 2]]), (1.0, 2.0, 2.0))[0][:4]
    ('a', 1, 2, 8.0)
    """
    ids, number = np.unique(instances, return_inverse=True)
    number = number.reshape(instances.shape)
    area = np.bincount(number.ravel(), minlength=len(ids))
    rows, columns = np.indices(instances.shape)
    y, x = (np.bincount(number.ravel(), axis.ravel()) / area for axis in (rows, columns))
    edges = np.concatenate([number[0], number[-1], number[:, 0], number[:, -1]])
    touching = np.bincount(edges, minlength=len(ids)) > 0
    pixel_nm2 = size_nm[1] * size_nm[2] if size_nm else None
    found = []
    for at in np.flatnonzero(ids):
        pixels = int(area[at])
        nm2 = None if pixel_nm2 is None else pixels * pixel_nm2
        found.append(
            Instance(
                image,
                int(ids[at]),
                pixels,
                nm2,
                diameter(pixels),
                None if nm2 is None else diameter(nm2),
                float(y[at]),
                float(x[at]),
                bool(touching[at]),
            )
        )
    return found


def diameter(area: float) -> float:
    """Of the disc of an area."""
    return 2 * math.sqrt(area / math.pi)


def write_table(rows: Iterable[Instance], path: Path) -> None:
    """A row for each instance, as CSV; what is not known is empty."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Instance._fields)
        for row in rows:
            writer.writerow([_text(value) for value in row])


def _text(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else value

"""Instances of a predicted slice: what hangs together of a class, and how what touches is parted.

Two particles that touch are one piece of their class. They are parted at a neck between them: where
the piece is narrower than a share of the narrower of its two bodies. The share is a ratio of distances
to the outside, so that large and small particles are treated alike. Where the run has learned where
instances meet (borders: among its labels), that parts them instead: what is left without borders grows
back until it fills the piece.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from em_train.segment.instances import BETWEEN, Subject, components, grown_together

NECK = 0.75


@dataclass(frozen=True, kw_only=True)
class Parting:
    """What instances are made of."""

    subject: Subject
    neck: float = NECK
    """Width of a neck at which instances are parted, as a share of the narrower body; 0: never."""
    borders: tuple[int, ...] = ()
    """Channels of the classes that part instances, instead of necks."""
    least_px: int = 1
    """Instances of fewer pixels are left out."""

    def __post_init__(self) -> None:
        if not 0 <= self.neck < 1:
            raise ValueError(
                f"--neck is {self.neck:g}; wanted a share from 0 (touching ones stay together) to below "
                "1 (every narrowing parts them)"
            )
        if self.neck and not self.subject.between and not self.borders:
            import_skimage("segmentation")  # before anything is computed

    def __call__(self, found: np.ndarray) -> np.ndarray:
        """Instances of a slice in raster order: (C, Y, X) bool -> (Y, X) uint32, 0 is none."""
        own = found[self.subject.channel]
        if self.subject.between:
            instances = grown_together(components(~own))
        elif self.borders:
            instances = without_borders(own, found[list(self.borders)].max(0))
        else:
            instances = parted(own, self.neck) if self.neck else components(own)
        return at_least(instances, self.least_px).astype(np.uint32)


def parting_of(
    text: str | None,
    neck: float | None,
    names: tuple[str, ...],
    borders: tuple[str, ...] = (),
    least_px: int = 1,
) -> Parting:
    """What `--instances`, `--neck` and `--least-px` of `emtrain predict` say.

    Without the one, the only class that is none of borders, or between the only borders; without the
    other, borders part what touches where there are some.
    """
    own = [name for name in names if name not in borders]
    if text is None and len(own or names) > 1:
        raise ValueError(
            f"the run knows {', '.join(names)}; say whose instances are wanted, with --instances "
            f"{names[0]} or --instances {BETWEEN}{names[0]}"
        )
    if text is None:
        text = own[0] if own else BETWEEN + names[0]
    subject = Subject.of(text, names)
    used = neck is None and not subject.between and names[subject.channel] not in borders
    return Parting(
        subject=subject,
        neck=NECK if neck is None else neck,
        borders=tuple(map(names.index, borders)) if used else (),
        least_px=least_px,
    )


def at_least(instances: np.ndarray, pixels: int) -> np.ndarray:
    """Those of so many pixels, numbered anew: integers from 1 on, 0 is none -> same.

    >>> at_least(np.array([[1, 2, 2, 0, 3, 3]]), 2).tolist()
    [[0, 1, 1, 0, 2, 2]]
    """
    large = np.bincount(instances.ravel()) >= pixels
    large[0] = False
    return np.where(large, np.cumsum(large), 0)[instances]


def without_borders(mask: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Pieces of a mask, parted by borders within it: (Y, X) bool each -> (Y, X) integers, 0 is none."""
    grown = grown_together(components(mask & ~borders), mask)
    lost = components(mask & (grown == 0))  # so small that they are nothing but border
    # Two that meet are of different numbers, so that they stay apart.
    return components(np.where(lost > 0, lost + grown.max(), grown))


def parted(mask: np.ndarray, neck: float = NECK) -> np.ndarray:
    """Pieces of a mask, parted at their necks: (Y, X) bool -> (Y, X) integers from 1 on, 0 is none.

    A watershed of the distance to the outside. A maximum of it is a body of its own where every way to
    a higher one passes a place that is closer to the outside by the factor `neck`: a maximum of the
    logarithm, after a reconstruction that levels shallower ones.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.int64)
    morphology, segmentation = import_skimage("morphology"), import_skimage("segmentation")
    ndimage = importlib.import_module("scipy.ndimage")  # which scikit-image needs
    # What the border of the image cuts goes on behind it, as far as is known.
    distance = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    if mask.all():
        return np.ones(mask.shape, np.int64)
    height = np.log(np.maximum(distance, 0.5))  # (Y, X), below 0 outside
    levelled = morphology.reconstruction(height + math.log(neck), height, method="dilation")
    tops = morphology.local_maxima(levelled) & mask
    markers = ndimage.label(tops, np.ones((3, 3)))[0]
    found = segmentation.watershed(-distance, markers, mask=mask)
    # A body that touches another one only at a corner is a piece of its own.
    return components(found)


def import_skimage(part: str) -> Any:
    """A part of scikit-image, named with the command that installs it when it is missing."""
    try:
        return importlib.import_module(f"skimage.{part}")
    except ImportError as error:
        raise ImportError(
            "parting instances that touch needs scikit-image, which cannot be imported "
            f"({error}); install it: pip install 'em-train[restore]', or leave them together with "
            "--neck 0"
        ) from error

"""Held-out slices: the loss that decides about weights and stopping, thresholds, scores, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from em_data import Box, GreyRange, ImageLabels, Images, Labels, Split, Volume, grey_range
from em_data.formats.images import some
from em_data.writer.tiling import as_uint8
from em_losses import SegmentationSums
from torch import Tensor, nn

from em_train.engine import distributed
from em_train.engine.precision import Precision
from em_train.predict.tiles import predict_logits
from em_train.segment.labels import Classes, labelled, truth_of
from em_train.segment.loss import LossConfig, probabilities, sums_of, terms_of
from em_train.segment.metrics import (
    LEVELS,
    Judged,
    best_thresholds,
    histograms,
    threshold_level,
)

WINDOW_VX = 1024  # largest side of what is looked at in a slice


class Window(NamedTuple):
    """A labelled piece of a held-out slice."""

    volume: Volume
    grey: GreyRange
    where: str
    box: Box
    truth: Tensor  # (C, Z, Y, X) bool
    known: Tensor  # (C, Z, Y, X) bool
    labels: Labels | None = None  # as stored


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the held-out slices say about a network."""

    loss: float
    histograms: np.ndarray  # (C, 2, 256), see `segment_metrics`
    dice: np.ndarray  # (C,) at the best threshold of each class

    def row(self, names: Sequence[str]) -> dict[str, float]:
        """Numbers for metrics.jsonl."""
        by_class = {f"validation_dice {n}": float(d) for n, d in zip(names, self.dice, strict=True)}
        return {
            "validation_loss": self.loss,
            "validation_dice": float(self.dice.mean()),
            **by_class,
        }


def choose_windows(
    volumes: Sequence[Volume],
    ranges: Sequence[GreyRange],
    labels: Sequence[Labels],
    classes: Classes,
    split: Split,
    slices: int,
) -> list[Window]:
    """The labelled pieces of at most so many held-out slices of each volume, evenly spread."""
    windows = []
    for number, (volume, grey, own) in enumerate(zip(volumes, ranges, labels, strict=True)):
        boxes = labelled(split.validation[number].centres or ())
        planes = sorted({box.origin_vx[0] for box in boxes})
        count = min(slices, len(planes))
        chosen = {planes[int((i + 0.5) * len(planes) / count)] for i in range(count)}
        for box in (middle(one) for one in boxes if one.origin_vx[0] in chosen):
            truth, known = truth_of(own, classes, box)
            which = f"volume {number + 1}, " if len(volumes) > 1 else ""
            where = f"{which}z {box.origin_vx[0]}"
            windows.append(Window(volume, grey, where, box, truth, known, own))
    return windows


def choose_image_windows(
    images: Images,
    labels: ImageLabels,
    classes: Classes,
    count: int | None,
    grey: Callable[[Volume], GreyRange] = grey_range,
) -> list[Window]:
    """The middles of at most so many images, evenly spread, or of all; each with a range of its own."""
    there, windows = len(images), []
    count = there if count is None else min(count, there)
    for number in (int((i + 0.5) * there / count) for i in range(count)):
        volume, own = images[number], labels[number]
        box = middle(Box((0, 0, 0), volume.shape))
        truth, known = truth_of(own, classes, box)
        windows.append(Window(volume, grey(volume), images.name(number), box, truth, known, own))
    return windows


def slices_of(windows: Sequence[Window]) -> list[str]:
    """Where the windows lie, every slice once."""
    return list(dict.fromkeys(window.where for window in windows))


def are_images(windows: Sequence[Window]) -> bool:
    """Whether windows are of images of a collection, not of slices."""
    return bool(windows) and windows[0].volume.format == "image"


def check_classes(windows: Sequence[Window], classes: Classes) -> None:
    """Refuse held-out slices that lack a class: nothing could be chosen on them."""
    where, images = some(slices_of(windows)), are_images(windows)
    if not windows:
        raise ValueError(
            "no labelled slice or image is held out; hold out some, for instance --val-z 880:900 of a "
            "volume, --val-images 0.2 of a collection"
        )
    for c, name in enumerate(classes.names):
        if not any(window.truth[c].any() for window in windows):
            seen = any(window.known[c].any() for window in windows)
            what = "no voxel" if seen else "no label"
            raise ValueError(
                f"class {name!r} has {what} in the held-out {'images' if images else 'slices'} "
                f"({where}); hold out others with {'--val-images' if images else '--val-z'}, or leave "
                "the class out"
            )


def score_windows(
    model: nn.Module,
    windows: Sequence[Window],
    config: LossConfig,
    device: torch.device,
    precision: Precision,
    *,
    alone: bool = False,
) -> Measured:
    """Loss and histograms over all windows, shared among the processes unless `alone`."""
    classes = len(windows[0].truth)
    outputs = classes + config.rest
    sums = torch.zeros(5, outputs, dtype=torch.float64)
    counts = np.zeros((classes, 2, LEVELS), np.int64)
    first, step = (0, 1) if alone else (distributed.rank(), distributed.size())
    for window in windows[first::step]:
        logits = predict_logits(model, *window[:2], window.box, device, precision)  # (C, Z, Y, X)
        # A window is a slice: boundaries are those within it.
        found = sums_of(
            logits[:, 0][None], window.truth[:, 0][None], window.known[:, 0][None], config
        )
        sums += torch.stack(list(found)).double()
        p = as_uint8(probabilities(logits[:, 0], config).numpy())
        counts += histograms(p, window.truth[:, 0].numpy(), window.known[:, 0].numpy())
    if not alone:
        sums = distributed.reduce(sums)
        counts = distributed.reduce(torch.from_numpy(counts)).numpy()
    total = SegmentationSums(*sums.unbind())
    loss = sum(value.item() for value in terms_of(total, config).values())
    levels = [threshold_level(t) for t in best_thresholds(counts)]
    dice = np.array([_dice(c, level) for c, level in zip(counts, levels, strict=True)])
    return Measured(loss=loss, histograms=counts, dice=dice)


def judged(
    model: nn.Module,
    windows: Sequence[Window],
    config: LossConfig,
    device: torch.device,
    precision: Precision,
) -> Iterator[tuple[Window, Judged]]:
    """The windows with what the model says about them, one at a time."""
    for window in windows:
        logits = predict_logits(model, *window[:2], window.box, device, precision)
        p = as_uint8(probabilities(logits[:, 0], config).numpy())
        truth, known = (one[:, 0].numpy() for one in (window.truth, window.known))
        yield window, Judged(window.where, p, truth, known)


def middle(box: Box, side_vx: int = WINDOW_VX) -> Box:
    """The middle of a slice, at most so large."""
    size = [min(n, side_vx) for n in box.size_vx[1:]]
    y, x = (
        o + (n - s) // 2 for o, n, s in zip(box.origin_vx[1:], box.size_vx[1:], size, strict=True)
    )
    return Box((box.origin_vx[0], y, x), (1, size[0], size[1]))


def _dice(sums: np.ndarray, level: int) -> float:
    negative, positive = sums[:, level:].sum(1)
    total = positive + negative + sums[1].sum()
    return float(2 * positive / total) if total else math.nan

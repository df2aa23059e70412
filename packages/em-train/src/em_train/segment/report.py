"""Scores with intervals, pictures of the best and the worst, and the report of a segmentation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from em_train.engine.atomic import replacing
from em_train.engine.precision import Precision
from em_train.engine.run_folder import RunFolder
from em_train.look import pictures, report
from em_train.look.report import Curve
from em_train.predict.tiles import predict_logits
from em_train.segment.labels import Classes
from em_train.segment.loss import LossConfig, probabilities
from em_train.segment.metrics import (
    TILE_VX,
    ClassScore,
    Judged,
    best_thresholds,
    count_tiles,
    judge,
    scores,
    threshold_level,
)
from em_train.segment.validation import (
    WINDOW_VX,
    Measured,
    Window,
    are_images,
    judged,
    middle,
    slices_of,
)

CASE_VX = 256  # side of the best and worst cases


SMALL_PX = 250


VIEW_VX = 360  # side of the pictures through time


MISSED, INVENTED = (60, 120, 255), (255, 60, 60)


CURVES = (
    Curve("loss", "loss", "of the training patches: cross-entropy + Dice"),
    Curve("validation_loss", "validation loss", "of the held-out slices, all together"),
    Curve("validation_dice", "validation Dice", "mean of the classes, at their best thresholds"),
    Curve("cross_entropy", "cross-entropy (nats)", "of the training patches"),
    Curve("dice_loss", "1 − Dice", "of the training patches, with probabilities"),
    Curve("labelled", "labelled share", "of the pixels of the patches"),
    Curve("grad_norm", "gradient norm", "before clipping"),
    Curve("patches_per_s", "patches per second", "speed of training, with reading"),
    Curve("lr", "learning rate", "of AdamW"),
)


class Case(NamedTuple):
    """A square that went well or badly."""

    score: float
    where: str
    raw: np.ndarray  # (Y, X) uint8
    truth: np.ndarray  # (C, Y, X) bool
    found: np.ndarray
    known: np.ndarray


def examine(
    model: nn.Module,
    windows: Sequence[Window],
    names: Sequence[str],
    thresholds: Sequence[float],
    config: LossConfig,
    device: torch.device,
    precision: Precision,
    *,
    seen: Callable[[Window, np.ndarray], None] | None = None,
) -> tuple[list[ClassScore], Case, Case]:
    """Scores of all windows, and the worst and the best square.

    `seen` is shown every window with what was found in it, (C, Y, X) bool.
    """
    levels = np.array([threshold_level(t) for t in thresholds])[:, None, None]
    cases: list[Case] = []

    def gather() -> Iterator[Judged]:
        for window, one in judged(model, windows, config, device, precision):
            found = one.probability >= levels
            if seen is not None:
                seen(window, found)
            raw = np.rint(window.grey.unit(window.volume.read(window.box))[0] * 255).astype(
                np.uint8
            )
            cases.extend(_cases(window, raw, one.truth, found, one.valid))
            cases.sort(key=lambda case: case.score)
            del cases[1:-1]
            yield one

    # Pixels of one image are no more independent than its pieces: images are drawn as a whole.
    drawn_vx = WINDOW_VX if are_images(windows) else TILE_VX
    result = judge(gather(), names, thresholds, tile_vx=drawn_vx)
    return result, cases[0], cases[-1]


def finish(
    model: nn.Module,
    windows: Sequence[Window],
    classes: Classes,
    found: Measured,
    folder: RunFolder,
    config: Any,
    device: torch.device,
    best_step: int,
) -> dict[str, str]:
    """Thresholds, scores, pictures and report of a run that is done; what came out, in words."""
    thresholds = best_thresholds(found.histograms).tolist()
    result, worst, best = examine(
        model, windows, classes.names, thresholds, config.loss, device, config.run.precision
    )
    described = {**asdict(classes), "thresholds": thresholds, "loss": config.loss.kind}
    _write(folder.path / "classes.json", described)
    _write(
        folder.path / "scores.json",
        {
            "slices": slices_of(windows),
            "validation_loss": found.loss,
            "best_step": best_step,
            "classes": [one.as_json() for one in result],
        },
    )
    for name, case in (("worst", worst), ("best", best)):
        save_case(case, folder.images / f"{name}.png")
    summary = {"best weights": f"of step {best_step}, validation loss {found.loss:.3f}"}
    for one in result:
        low, high = one.intervals["dice"]
        summary[one.name] = (
            f"Dice {one.scores['dice']:.3f} ({low:.3f} to {high:.3f}), IoU {one.scores['iou']:.3f}, "
            f"precision {one.scores['precision']:.3f}, recall {one.scores['recall']:.3f}, boundary F1 "
            f"{one.scores['boundary_f1']:.3f}, average precision {one.average_precision:.3f}, from "
            f"probability {one.threshold:.2f}"
        )
    summary["scored on"] = (
        f"{', '.join(slices_of(windows))}: held out from training, but weights and "
        "thresholds were chosen on them; for others, emtrain evaluate"
    )
    report.write(
        folder,
        config,
        title=f"segment · {folder.path.name}",
        lead="Red was found and is not there, blue is there and was not found.",
        summary=summary,
        curves=CURVES,
        picture=folder.images / "worst.png",
        picture_caption=f"the worst square of {CASE_VX} px: {worst.where}, mean Dice {worst.score:.2f}; "
        f"the best is images/best.png ({best.where}, {best.score:.2f})",
    )
    return summary


def preview(
    model: nn.Module,
    window: Window,
    folder: RunFolder,
    step: int,
    config: LossConfig,
    device: torch.device,
    precision: Precision,
) -> None:
    """Save the middle of a window as input, truth, prediction and errors, at probability .5."""
    box = middle(window.box, VIEW_VX)
    part: Any = tuple(
        slice(o - w, o - w + n)
        for o, w, n in zip(
            box.origin_vx[1:], window.box.origin_vx[1:], box.size_vx[1:], strict=True
        )
    )
    logits = predict_logits(model, *window[:2], box, device, precision)
    found = (probabilities(logits[:, 0], config) >= 0.5).numpy()
    truth, known = (one[:, 0].numpy()[(..., *part)] for one in (window.truth, window.known))
    raw = np.rint(window.grey.unit(window.volume.read(box))[0] * 255).astype(np.uint8)
    case = Case(math.nan, window.where, raw, truth, found, known)
    save_case(case, folder.images / f"step-{step:06d}.png")


def save_case(case: Case, path: Path) -> None:
    """Write the panels of a case as PNG; small ones are enlarged, so that their titles fit."""
    times = -(-SMALL_PX // case.raw.shape[1])
    rows = [(title, panel.repeat(times, 0).repeat(times, 1)) for title, panel in panels(case)]
    pictures.save_row(rows, path)


def panels(case: Case) -> list[tuple[str, np.ndarray]]:
    """Input, truth, prediction and errors side by side."""
    errors = np.repeat(case.raw[..., None], 3, -1)
    missed, invented = (
        (case.truth & ~case.found).any(0),
        (case.found & ~case.truth & case.known).any(0),
    )
    for mask, colour in ((missed, MISSED), (invented, INVENTED)):
        errors[mask] = colour
    return [
        (f"input, {case.where}", case.raw),
        ("truth", _painted(case.raw, case.truth)),
        ("prediction", _painted(case.raw, case.found)),
        ("errors: red found, blue missed", errors),
    ]


def _painted(raw: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Classes over a slice, later ones on top: (Y, X), (C, Y, X) -> (Y, X, 3)."""
    grey = np.repeat(raw[..., None], 3, -1)
    colours = grey.copy()
    for mask, colour in zip(masks, pictures.palette(len(masks)), strict=True):
        colours[mask] = colour
    return pictures.overlay(raw, colours)


def _cases(
    window: Window, raw: np.ndarray, truth: np.ndarray, found: np.ndarray, known: np.ndarray
) -> Iterator[Case]:
    """Squares that cover a window, those with something to be found in them."""
    rows, columns = (
        sorted({*range(0, n - CASE_VX, CASE_VX), max(0, n - CASE_VX)}) for n in raw.shape
    )
    _, y0, x0 = window.box.origin_vx
    for y in rows:
        for x in columns:
            part = (slice(y, y + CASE_VX), slice(x, x + CASE_VX))
            own = [one[(slice(None), *part)] for one in (truth, found, known)]
            if not own[0].any():
                continue
            counts = count_tiles(own[1], own[0], own[2], 0, CASE_VX).sum(0)
            score = float(np.nanmean(scores(counts)["dice"]))
            where = f"{window.where}, y {y0 + y}, x {x0 + x}"
            yield Case(score, where, raw[part].copy(), *(o.copy() for o in own))


def _write(path: Any, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")

"""Pictures of slices and class maps, with one stable colour per class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from em_train.engine.atomic import replacing

GAP_PX = 12
TITLE_PX = 26
SMALL_PX = 240  # panels that are smaller are enlarged
TRUTH_COLOURS = 100  # where the colours of true classes begin
GOLDEN = 0.6180339887  # steps of the golden ratio keep the hues of successive classes far apart


@cache
def palette(classes: int, first: int = 0) -> np.ndarray:
    """RGB of each class, the same in every picture: (classes, 3) uint8.

    Another `first` gives other colours, for labels that are not to be taken for the same classes.
    """
    rows = []
    for i in range(first, first + classes):
        lightness, saturation = ((0.62, 0.75), (0.42, 0.65), (0.75, 0.5))[i % 3]
        rows.append(colorsys.hls_to_rgb(i * GOLDEN % 1, lightness, saturation))
    return np.rint(np.array(rows) * 255).astype(np.uint8)


def class_map(codes: np.ndarray, classes: int, first: int = 0) -> np.ndarray:
    """Hard codes (Y, X) as colours (Y, X, 3)."""
    return palette(classes, first)[codes]


def true_map(classes: np.ndarray, n: int) -> np.ndarray:
    """True classes (Y, X) as colours of their own (Y, X, 3); below 0, unlabelled, is black.

    A true class and a learned one have nothing to do with each other, so they share no colour.
    """
    colours = np.concatenate([palette(n, TRUTH_COLOURS), np.zeros((1, 3), np.uint8)])
    return colours[classes]


def overlay(raw: np.ndarray, colours: np.ndarray, opacity: float = 0.45) -> np.ndarray:
    """Colours over a grey slice: (Y, X) uint8, (Y, X, 3) -> (Y, X, 3)."""
    mixed = (1 - opacity) * raw[..., None] + opacity * colours
    return np.rint(mixed).astype(np.uint8)


def enlarged(panels: Sequence[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Panels whose pixels are squares of pixels, so that small ones can be seen and titles fit."""
    times = max(1, round(SMALL_PX / min(panel.shape[0] for _, panel in panels)))
    return [(title, panel.repeat(times, 0).repeat(times, 1)) for title, panel in panels]


def save_row(panels: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Write titled panels, (Y, X) grey or (Y, X, 3) colour, side by side as PNG."""
    height = max(panel.shape[0] for _, panel in panels) + TITLE_PX
    width = sum(panel.shape[1] for _, panel in panels) + GAP_PX * (len(panels) - 1)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    left = 0
    for title, panel in panels:
        draw.text((left, 3), title, fill="black", font=font)
        sheet.paste(Image.fromarray(panel).convert("RGB"), (left, TITLE_PX))
        left += panel.shape[1] + GAP_PX
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")

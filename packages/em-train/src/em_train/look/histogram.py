"""A histogram as a picture, with its axis and what it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from em_train.engine.atomic import replacing

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 720, 420, 56
BARS = (8, 60)  # fewest and most
COLOUR = (70, 110, 190)


def save_histogram(values: Sequence[float], label: str, path: Path) -> None:
    """Write how often values lie where, as PNG; under the axis stands `label`."""
    sheet = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    left, right = MARGIN_PX, WIDTH_PX - MARGIN_PX // 2
    top, bottom = MARGIN_PX, HEIGHT_PX - MARGIN_PX
    draw.text((left, 12), title(values), fill="black", font=font)
    draw.text((left, HEIGHT_PX - 24), label, fill="black", font=font)
    if len(values):
        edges = edges_of(values)
        counts = np.histogram(values, edges)[0]
        wide, tall = (right - left) / len(counts), (bottom - top) / counts.max()
        for number, count in enumerate(counts):
            x0, x1 = left + number * wide, left + (number + 1) * wide
            if count:
                draw.rectangle((x0, bottom - count * tall, x1 - 1, bottom), fill=COLOUR)
        step = nice((edges[-1] - edges[0]) / 6)
        for tick in np.arange(math.ceil(edges[0] / step) * step, edges[-1] + step / 1e6, step):
            x = left + (tick - edges[0]) / (edges[-1] - edges[0]) * (right - left)
            draw.line((x, bottom, x, bottom + 5), fill="black")
            draw.text((x, bottom + 8), f"{tick:g}", fill="black", font=font, anchor="ma")
        draw.text((left - 8, top), f"{counts.max()}", fill="black", font=font, anchor="rm")
        draw.text((left - 8, bottom), "0", fill="black", font=font, anchor="rm")
    draw.line((left, bottom, right, bottom), fill="black")
    draw.line((left, top, left, bottom), fill="black")
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def title(values: Sequence[float]) -> str:
    """How many there are, and where most of them lie.

    >>> title([1.0, 2.0, 3.0])
    '3 in all, median 2, half of them from 1.5 to 2.5'
    """
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{len(values)} in all, median {middle:.3g}, half of them from {low:.3g} to {high:.3g}"


def edges_of(values: Sequence[float]) -> np.ndarray:
    """The ends of bars of one width, a round number, from a multiple of it on."""
    low, high = float(np.min(values)), float(np.max(values))
    bars = min(max(round(2 * len(values) ** (1 / 3)), BARS[0]), BARS[1])  # the rule of Rice
    width = nice(max(high - low, 1e-3 * max(abs(high), 1)) / bars)
    first = math.floor(low / width)
    return (first + np.arange(math.floor(high / width) - first + 2)) * width


def nice(width: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below.

    >>> nice(0.3), nice(7)
    (0.5, 10.0)
    """
    power = 10.0 ** math.floor(math.log10(width))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= width * (1 - 1e-9))

"""Pictures for the documents: rows of panels, each row and each panel with a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

GAP_PX, BAR_PX = 4, 18

Panel = tuple[str, torch.Tensor]  # its name, (Y, X) in [0, 1]


def save(path: Path, rows: Sequence[tuple[str, Sequence[Panel]]], *, greys: int) -> None:
    """Write panels of one size; few grey values, because noise makes files large."""
    height, width = rows[0][1][0][1].shape
    most = max(len(panels) for _, panels in rows)
    sheet = Image.new(
        "L", (most * (width + GAP_PX) - GAP_PX, len(rows) * (height + 2 * BAR_PX)), 255
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for r, (title, panels) in enumerate(rows):
        top = r * (height + 2 * BAR_PX)
        pen.text((0, top + 1), title, fill=0, font=font)
        for c, (name, panel) in enumerate(panels):
            left = c * (width + GAP_PX)
            step = 255 / (greys - 1)
            pixels = np.rint(np.rint(panel.numpy() * 255 / step) * step).astype(np.uint8)
            sheet.paste(Image.fromarray(pixels), (left, top + BAR_PX))
            pen.text((left, top + BAR_PX + height + 1), name, fill=0, font=font)
    sheet.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")

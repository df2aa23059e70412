"""What a masked autoencoder shows: hidden, filled in and true voxels, and which details are missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data.loader import Batch
from em_models import Mae
from PIL import Image, ImageDraw, ImageFont

from em_train.engine import precision
from em_train.engine.atomic import replacing
from em_train.engine.precision import Precision
from em_train.engine.run_folder import RunFolder
from em_train.look import pictures, report
from em_train.look.report import Curve
from em_train.mae.data import DataConfig, voxels_of
from em_train.mae.validation import checked_masks, filled_in, shown, unit_of

PANEL_PX = 224  # smaller planes are enlarged to about this
HIDDEN_GREY = 128
PLOT_PX = (560, 300)
CURVES = (
    Curve("loss", "loss", "error of the hidden patches of the batch, and what is added to it"),
    Curve("error", "training error", "mean squared error; a flat patch has 1"),
    Curve("held_out", "held-out error", "the same on cubes that are never learned from"),
    Curve("tokens_per_s", "tokens per second", "visible and hidden, with reading"),
    Curve("gflop_per_s", "GFLOP per second", "of matrix products and attention, with reading"),
    Curve("lr", "learning rate", "of AdamW"),
    Curve("grad_norm", "gradient norm", "before clipping"),
)


@torch.inference_mode()
def preview(
    model: Mae,
    batch: Batch,
    data: DataConfig,
    path: Path,
    *,
    device: torch.device,
    kind: Precision,
    seed: int,
) -> None:
    """Save the middle planes of the first held-out cube: what is shown, filled in, and true."""
    patch = model.config.encoder.patch_vx
    voxels = voxels_of(batch.to(device), data)
    masks = checked_masks(model, voxels, 0, seed)
    with precision.autocast(kind, device):
        prediction = model(voxels, masks)
    grey = float(voxels.scale[0]) / unit_of(voxels) if voxels.scale is not None else 1.0
    offset = float(voxels.shift[0]) if voxels.shift is not None else 0.0
    filled = filled_in(prediction, voxels, masks, patch)[0].cpu() * grey + offset
    true = voxels.stored[0, 0].float().cpu() * unit_of(voxels) * grey + offset
    visible = shown(voxels, masks, patch)[0]
    panels = [
        ("shown", _planes(true, batch.voxel_size_nm[0], visible)),
        ("filled in", _planes(filled, batch.voxel_size_nm[0])),
        ("truth", _planes(true, batch.voxel_size_nm[0])),
    ]
    pictures.save_row(panels, path)


def _planes(cube: Any, size_nm: Any, visible: Any = None) -> np.ndarray:
    """The planes xy, xz and yz through the middle, one below the other, to scale: (Y, X) uint8."""
    values = np.rint(cube.clamp(0, 1).numpy() * 255).astype(np.uint8)
    if visible is not None:
        values = np.where(visible.numpy(), values, HIDDEN_GREY).astype(np.uint8)
    z, y, x = (n // 2 for n in values.shape)
    tall = max(1, round(size_nm[0] / size_nm[2])) if size_nm else 1
    zoom = max(1, round(PANEL_PX / values.shape[2]))
    planes = [values[z], values[:, y].repeat(tall, 0), values[:, :, x].repeat(tall, 0)]
    width = max(plane.shape[1] for plane in planes)
    rows = []
    for plane in planes:
        padded = np.full((plane.shape[0] + 2, width), 255, np.uint8)
        padded[: plane.shape[0], : plane.shape[1]] = plane
        rows.append(padded)
    return np.concatenate(rows)[:-2].repeat(zoom, 0).repeat(zoom, 1)


def save_spectrum(points: Sequence[tuple[float, float]], path: Path) -> None:
    """Draw the share of the power that is missed over the frequency."""
    width, height = PLOT_PX
    left, top, right, bottom = 56, 16, width - 16, height - 44
    sheet = Image.new("RGB", PLOT_PX, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    largest = max(1.0, *(share for _, share in points))
    end = max(frequency for frequency, _ in points)

    def at(frequency: float, share: float) -> tuple[float, float]:
        return left + frequency / end * (right - left), bottom - share / largest * (bottom - top)

    for share in (0, 0.25, 0.5, 0.75, 1.0):
        draw.line([at(0, share), at(end, share)], fill="#dddddd")
        draw.text((10, at(0, share)[1] - 8), f"{share:.2f}", fill="black", font=font)
    for frequency, _ in points:
        draw.text(
            (at(frequency, 0)[0] - 12, bottom + 4), f"{frequency:.2f}", fill="black", font=font
        )
    draw.text((left, bottom + 22), "cycles per voxel; share of power missed", "black", font=font)
    draw.line([at(*point) for point in points], fill="#2a78d6", width=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def write_report(folder: RunFolder, config: Any, summary: Mapping[str, str]) -> None:
    """Write `report.html` of a run."""
    report.write(
        folder,
        config,
        title=f"mae · {folder.path.name}",
        lead="A volume with most of its patches hidden, and what the model fills in. Hidden patches "
        "are shown at the mean and contrast of the truth, because the model is asked for their "
        "pattern alone.",
        summary=summary,
        curves=CURVES,
        picture=folder.images / "filled-in.png",
        picture_caption="a held-out cube: the planes xy, xz and yz through its middle",
    )

"""What dense-ssl shows: class maps, agreement with truth where there is one, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from em_data import Box, Volume
from em_data.loader import SCALES
from em_models import DenseEncoder
from torch import Tensor

from em_train import pictures, report
from em_train.baselines import grey_centres, grey_codes
from em_train.metrics import nmi
from em_train.report import Curve
from em_train.run_folder import RunFolder

VIEW_VX = 360  # side of the pictures
SCORED_SLICES = 8
SCORED_VX = 768  # side of the window of each slice that is compared with the truth
TRUTH = "classes"  # label image that synthetic volumes carry

CURVES = (
    Curve("loss", "loss", "what is minimised: pred + floor + sharpen"),
    Curve("pred", "cross-entropy (nats)", "how badly the neighbours predict the target's codes"),
    Curve(
        "information",
        "information (nats)",
        "H̄ − cross-entropy: what a code says about its place in the tissue",
    ),
    Curve("mean_classes", "exp H̄", "classes that the mean code is spread over"),
    Curve("entropy", "entropy of a code (nats)", "0: every pixel is decided"),
    Curve("max_probability", "mean largest probability", "1: every pixel is decided"),
    Curve("active_classes", "classes in use", "effective number of hard classes in a batch"),
    Curve("slices_per_s", "slices per second", "speed of training, with reading"),
    Curve("lr", "learning rate", "of AdamW"),
)


def view_box(volume: Volume, margin: int, z: int, side_vx: int = VIEW_VX) -> Box:
    """The middle of a slice, with the border that the encoder loses."""
    size = [min(n, side_vx + 2 * margin) for n in volume.shape[1:]]
    origin = [(n - s) // 2 for n, s in zip(volume.shape[1:], size, strict=True)]
    return Box((z, origin[0], origin[1]), (1, size[0], size[1]))


@torch.inference_mode()
def hard_codes(encoder: DenseEncoder, slices: np.ndarray) -> np.ndarray:
    """The class of every pixel of stored slices (Z, Y, X) that has one: (Z, Y − 2m, X − 2m)."""
    device = encoder.prototypes.device
    codes = []
    for image in slices:  # one by one: dense features of a slice take 0.3 GB at 1024²
        pixels = torch.from_numpy(image).to(device).float() * SCALES[slices.dtype]
        codes.append(encoder(pixels[None, None], dense=True).logits[0].argmax(0).cpu())
    return torch.stack(codes).numpy()


def preview(encoder: DenseEncoder, volume: Volume, folder: RunFolder, name: str) -> None:
    """Save one slice as raw, classes, overlay and, where it is known, truth."""
    margin, classes = encoder.config.margin, encoder.config.classes
    box = view_box(volume, margin, volume.shape[0] // 2)
    raw = volume.read(box)
    colours = pictures.class_map(hard_codes(encoder, raw)[0], classes)
    grey = _bytes(raw[0])[margin:-margin, margin:-margin]
    panels = [("raw", grey), ("classes", colours), ("both", pictures.overlay(grey, colours))]
    if TRUTH in volume.label_names:
        truth = volume.labels(TRUTH).read(box)[0][margin:-margin, margin:-margin]
        panels.append(("truth (never seen)", pictures.class_map(truth, classes)))
    pictures.save_row(panels, folder.images / f"{name}.png")


def agreement(encoder: DenseEncoder, volume: Volume) -> dict[str, float] | None:
    """NMI with the truth of the learned classes and of k-means on smoothed grey, same pixels."""
    if TRUTH not in volume.label_names:
        return None
    margin, k = encoder.config.margin, encoder.config.classes
    depth = volume.shape[0]
    planes = sorted({int(z) for z in np.linspace(0, depth - 1, SCORED_SLICES + 2)[1:-1]})
    inner = slice(margin, -margin)
    boxes = [view_box(volume, margin, z, SCORED_VX) for z in planes]
    raw = np.concatenate([volume.read(box) for box in boxes])
    truth = np.concatenate([volume.labels(TRUTH).read(box) for box in boxes])
    truth_inner = torch.from_numpy(truth[:, inner, inner].astype(np.int64))
    image = torch.from_numpy(raw) * SCALES[raw.dtype]
    grey: Tensor = grey_codes(image, grey_centres(image, k))[:, inner, inner]
    return {
        "learned": nmi(torch.from_numpy(hard_codes(encoder, raw)), truth_inner),
        "grey": nmi(grey, truth_inner),
    }


def write_report(folder: RunFolder, config: Any, summary: Mapping[str, str]) -> None:
    """Write `report.html` of a dense-ssl run."""
    report.write(
        folder,
        config,
        title=f"dense-ssl · {folder.path.name}",
        lead=(
            "Classes that every pixel was given without labels. Colours name classes, and a class "
            "keeps its colour in all pictures of the run."
        ),
        summary=summary,
        curves=CURVES,
        picture=folder.images / "classes.png",
        picture_caption="the middle slice of the first volume",
    )


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(image * (SCALES[image.dtype] * 255)).astype(np.uint8)

"""What dense-ssl shows: class maps, agreement with truth where there is one, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from em_data import Box, GreyRange, Volume
from em_models import DenseEncoder

from em_train import pictures, report
from em_train.baselines import grey_centres, grey_codes
from em_train.metrics import nmi
from em_train.report import Curve
from em_train.run_folder import RunFolder

VIEW_VX = 360  # side of the pictures
SCORED_SLICES = 8
SCORED_VX = 768  # side of the window of each slice that is compared with the truth
TRUTH_COLOURS = 100
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
def hard_codes(encoder: DenseEncoder, image: np.ndarray) -> np.ndarray:
    """The class of every pixel of slices in [0, 1] that has one: (Z, Y, X) -> (Z, Y − 2m, X − 2m)."""
    device = encoder.prototypes.device
    codes = []
    for plane in torch.from_numpy(image).to(device):  # one by one: the features are large
        codes.append(encoder(plane[None, None], dense=True).logits[0].argmax(0).cpu())
    return torch.stack(codes).numpy()


def truth_of(volume: Volume) -> Volume | None:
    """The true classes of a volume, if it has any that lie exactly on its voxels."""
    if TRUTH not in volume.label_names:
        return None
    truth = volume.labels(TRUTH)
    same = (truth.shape, truth.voxel_size_nm, truth.origin_nm) == (
        volume.shape,
        volume.voxel_size_nm,
        volume.origin_nm,
    )
    return truth if same else None


def preview(
    encoder: DenseEncoder, volume: Volume, grey: GreyRange, folder: RunFolder, name: str
) -> None:
    """Save one slice as raw, classes, overlay and, where it is known, truth."""
    margin, classes = encoder.config.margin, encoder.config.classes
    box = view_box(volume, margin, volume.shape[0] // 2)
    image = grey.unit(volume.read(box))
    colours = pictures.class_map(hard_codes(encoder, image)[0], classes)
    raw = np.rint(without_border(image[0], margin) * 255).astype(np.uint8)
    panels = [("raw", raw), ("classes", colours), ("both", pictures.overlay(raw, colours))]
    truth = truth_of(volume)
    if truth is not None:
        names, labels = np.unique(without_border(truth.read(box)[0], margin), return_inverse=True)
        # Colours of their own: a true class and a learned one have nothing to do with each other.
        shown = pictures.class_map(labels.reshape(raw.shape), len(names), first=TRUTH_COLOURS)
        panels.append(("truth (never seen)", shown))
    pictures.save_row(panels, folder.images / f"{name}.png")


def agreement(encoder: DenseEncoder, volume: Volume, grey: GreyRange) -> dict[str, float] | None:
    """NMI with the truth of the learned classes and of k-means on smoothed grey, same pixels."""
    truth = truth_of(volume)
    if truth is None:
        return None
    margin, k = encoder.config.margin, encoder.config.classes
    planes = sorted({int(z) for z in np.linspace(0, volume.shape[0] - 1, SCORED_SLICES + 2)[1:-1]})
    boxes = [view_box(volume, margin, z, SCORED_VX) for z in planes]
    image = np.concatenate([grey.unit(volume.read(box)) for box in boxes])  # (Z, Y, X)
    labels = np.concatenate([truth.read(box) for box in boxes])
    _, classes = np.unique(without_border(labels, margin), return_inverse=True)
    true = torch.from_numpy(classes.ravel())
    slices = torch.from_numpy(image)
    smoothed = grey_codes(slices, grey_centres(slices, k)).numpy()
    return {
        "learned": nmi(torch.from_numpy(hard_codes(encoder, image).ravel()), true),
        "grey": nmi(torch.from_numpy(without_border(smoothed, margin).ravel()), true),
    }


def without_border(slices: np.ndarray, margin: int) -> np.ndarray:
    """(…, Y, X) without `margin` pixels on each side."""
    height, width = slices.shape[-2:]
    return slices[..., margin : height - margin, margin : width - margin]


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

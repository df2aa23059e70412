"""What dense-ssl shows: class maps, agreement with truth where there is one, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from em_data import Box, GreyRange, Volume
from em_models import Geometry

from em_train.dense.proof import Proof, in_words
from em_train.engine.progress import say
from em_train.engine.run_folder import RunFolder
from em_train.judge.baselines import grey_centres, grey_codes
from em_train.judge.codes import nmi
from em_train.judge.truth import stored_truth
from em_train.look import pictures, report
from em_train.look.report import Curve

VIEW_VX = 360  # side of the pictures
SCORED_SLICES = 8
SCORED_VX = 768  # side of the window of each slice that is compared with the truth

CURVES = (
    Curve("loss", "loss", "what is minimised: the weighted sum of the terms below"),
    Curve("pred", "cross-entropy (nats)", "how badly the neighbours predict the target's codes"),
    Curve(
        "beyond_mean", "beyond the mean (nats)", "how much better than the mean of the neighbours"
    ),
    Curve(
        "information",
        "information (nats)",
        "H̄ − cross-entropy: what a code says about its place in the tissue",
    ),
    Curve("view", "views (nats)", "cross-entropy between the codes of two views of the target"),
    Curve("contrast_context", "InfoNCE, context (nats)", "embedding predicted against seen"),
    Curve("contrast_view", "InfoNCE, views (nats)", "one view against the other"),
    Curve("feature", "features", "error of the filter bank's features read from the embedding"),
    Curve("reg", "spread", "what keeps the classes from falling together; 0: the floor is held"),
    Curve("mean_classes", "exp H̄", "classes that the mean code is spread over"),
    Curve("cond", "entropy of a code (nats)", "0: every pixel is decided"),
    Curve("max_probability", "mean largest probability", "1: every pixel is decided"),
    Curve("active_classes", "classes in use", "effective number of hard classes in a batch"),
    Curve("unique_classes", "classes that occur", "number of different hard classes in a batch"),
    Curve("slices_per_s", "slices per second", "speed of training, with reading"),
    Curve("lr", "learning rate", "of AdamW"),
)


def view_box(volume: Volume, geometry: Geometry, z: int, side_vx: int = VIEW_VX) -> Box:
    """The middle of a slice, with the border that the encoder loses."""
    size = [min(n, side_vx + geometry.trimmed) for n in volume.shape[1:]]
    origin = [(n - s) // 2 for n, s in zip(volume.shape[1:], size, strict=True)]
    return Box((z, origin[0], origin[1]), (1, size[0], size[1]))


@torch.inference_mode()
def hard_codes(encoder: Any, image: np.ndarray) -> np.ndarray:
    """The class of every pixel of slices in [0, 1] that has one: (Z, Y, X) -> without the border."""
    device = next(encoder.parameters(), torch.zeros(())).device
    codes = []
    for plane in torch.from_numpy(image).to(device):  # one by one: the features are large
        codes.append(encoder(plane[None, None], dense=True).logits[0].argmax(0).cpu())
    return torch.stack(codes).numpy()


def preview(encoder: Any, volume: Volume, grey: GreyRange, folder: RunFolder, name: str) -> None:
    """Save one slice as raw, classes, overlay and, where it is known, truth."""
    geometry, classes = encoder.geometry, encoder.config.classes
    box = view_box(volume, geometry, volume.shape[0] // 2)
    image = grey.unit(volume.read(box))
    colours = pictures.class_map(hard_codes(encoder, image)[0], classes)
    raw = np.rint(without_border(image[0], geometry) * 255).astype(np.uint8)
    panels = [("raw", raw), ("classes", colours), ("both", pictures.overlay(raw, colours))]
    truth = truth_in(volume, [box])
    if truth is not None:
        inner = without_border(truth[0][0], geometry)
        names, labels = np.unique(inner, return_inverse=True)
        shown = pictures.true_map(labels.reshape(raw.shape), len(names))
        panels.append(("truth (never seen)", shown))
    pictures.save_row(panels, folder.images / f"{name}.png")


def truth_in(volume: Volume, boxes: Sequence[Box]) -> list[np.ndarray] | None:
    """The truth that is stored beside a volume; None where there is none, or none that can be read.

    It is shown and never learned from: labels that are damaged do not end a run.
    """
    try:
        truth = stored_truth(volume)
        return None if truth is None else [truth.read(box) for box in boxes]
    except (OSError, ValueError) as error:
        say(f"labels  not shown: {error}")
        return None


def agreement(encoder: Any, volume: Volume, grey: GreyRange) -> dict[str, float] | None:
    """NMI with the truth of the learned classes and of k-means on smoothed grey, same pixels."""
    geometry, k = encoder.geometry, encoder.config.classes
    planes = sorted({int(z) for z in np.linspace(0, volume.shape[0] - 1, SCORED_SLICES + 2)[1:-1]})
    boxes = [view_box(volume, geometry, z, SCORED_VX) for z in planes]
    truth = truth_in(volume, boxes)
    if truth is None:
        return None
    image = np.concatenate([grey.unit(volume.read(box)) for box in boxes])  # (Z, Y, X)
    labels = without_border(np.concatenate(truth), geometry)
    _, classes = np.unique(labels, return_inverse=True)
    true = torch.from_numpy(classes.ravel())
    slices = torch.from_numpy(image)
    smoothed = grey_codes(slices, grey_centres(slices, k)).numpy()
    return {
        "learned": nmi(torch.from_numpy(hard_codes(encoder, image).ravel()), true),
        "grey": nmi(torch.from_numpy(without_border(smoothed, geometry).ravel()), true),
    }


def without_border(slices: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The pixels of (…, Y, X) that have a code; an even receptive field loses one more behind them."""
    rows, columns = (
        slice(geometry.margin, geometry.margin + geometry.codes(n, 1)) for n in slices.shape[-2:]
    )
    return slices[..., rows, columns]


def write_report(
    folder: RunFolder, config: Any, summary: Mapping[str, str], proof: Proof | None = None
) -> None:
    """Write `report.html` of a dense-ssl run, the verdict of its proof first."""
    lead = (
        "Classes that every pixel was given without labels. Colours name classes, and a class "
        "keeps its colour in all pictures of the run."
    )
    if proof is not None:
        summary = {**in_words(proof), **summary}
        if proof.passed is False:
            lead = (
                f"This run FAILED its proof: do not trust its classes. {proof.sentence[8:]}. {lead}"
            )
    report.write(
        folder,
        config,
        title=f"dense-ssl · {folder.path.name}",
        lead=lead,
        summary=summary,
        curves=CURVES,
        picture=folder.images / "classes.png",
        picture_caption="the middle slice of the first volume",
    )


def summarise(
    encoder: Any, volume: Volume, grey: GreyRange, folder: RunFolder, proof: Proof | None
) -> dict[str, str]:
    """What came out, in words for a person."""
    rows, summary = folder.rows(), {}
    if last := rows[-max(1, len(rows) // 10) :]:  # one batch says little; none where rows were lost
        information = sum(row["information"] for row in last) / len(last)
        summary["steps"] = f"{rows[-1]['step']}"
        summary["information"] = (
            f"about {information:.2f} nats that a code shares with its neighbours"
        )
    if proof is not None:
        used = proof.figures.effective_classes
        summary["classes"] = f"{used:.1f} of {encoder.config.classes} effectively in use"
    found = agreement(encoder, volume, grey)
    if found is not None:
        summary["agreement with truth"] = (
            f"NMI {found['learned']:.3f}; k-means on smoothed grey {found['grey']:.3f} "
            "(the truth was never used for training)"
        )
    return summary

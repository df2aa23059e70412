"""The proof that classes depend on content: is there a shortcut that the encoder has taken?

A code may be a function of where a pixel lies in its crop, or of its brightness alone, and still be
predictable from the neighbouring slices. Each figure here would show one of these, and each gate is
judged from its figure alone, whatever the encoder is or says about itself.

    crops of a volume -> codes -> figures -> gates -> proof
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from em_data import GreyRange, Key, Stream, Volume, augment
from torch import Tensor

from em_train.dense.codes import crop_codes
from em_train.dense.position import (
    overlapping_boxes,
    position_leak,
    position_leak_of_places,
    random_boxes,
    read_crops,
    shift_kappa,
)
from em_train.engine.jsonable import blank_nan
from em_train.judge.baselines import REACH, smooth
from em_train.judge.codes import effective_classes, kappa, largest_share, share_told

CROPS = 320  # random crops of training size
DENSE_PAIRS = 12  # pairs of crops that get a code for every pixel, which takes pitch² as long
PAIRS = 96
WIDE = 4  # crops: volumes less wide tie place in the volume to place in the crop
GREY_BINS = 50
# Of the Gaussian that grey is averaged by, in pixels. Wider steps miss codes of scales between.
GREY_SIGMAS = (0.0, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)
PHOTOMETRY = 0.3  # strength of the photometric change, as in `em_data.augment`

UNMEASURED = "there is a single class, a crop has a single code, or no room to move in the volume"

Sense = Literal["≤", "≥"]


class Gate(NamedTuple):
    """A bound on one figure, and what it means to miss it."""

    figure: str
    title: str
    sense: Sense
    bound: float
    meaning: str
    missed: str
    share: float = math.inf  # of the classes asked for, the bound where that is less

    def limit(self, classes: int) -> float:
        """The bound for an encoder of so many classes."""
        return min(self.bound, self.share * classes)


GATES = (
    Gate(
        *("position_leak", "position leak", "≤", 0.01),
        "share of the code that the place in the crop tells, beyond chance",
        "the codes depend on where a pixel lies in its crop",
    ),
    Gate(
        *("shift_kappa", "shift κ", "≥", 0.999),
        "agreement of the codes of the same pixels in two crops",
        "the same pixels get other codes when the crop is moved",
    ),
    Gate(
        *("dense_shift_kappa", "shift κ, every pixel", "≥", 0.999),
        "the same for the output with a code for every pixel, at any offset",
        "the dense output depends on where it was cut",
    ),
    Gate(
        *("audit_information", "shuffle audit", "≤", 0.02),
        "nats by which codes are predicted from unrelated places (H̄ − CE)",
        "codes can be predicted from places that have nothing to do with them",
    ),
    Gate(
        *("effective_classes", "effective classes", "≥", 12.0),
        "exp(entropy) of how often each class is used",
        "the codes have collapsed to few classes",
        share=0.6,
    ),
    Gate(
        *("largest_class", "largest class", "≤", 0.40),
        "share of the pixels in the most frequent class",
        "one class wins almost everywhere",
    ),
    Gate(
        *("grey_share", "grey share", "≤", 0.50),
        "share of the code that locally averaged grey tells, at the scale that tells most",
        "the classes are little more than levels of grey",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ProofFigures:
    """What was measured; NaN where it could not be, None where it was not asked for."""

    position_leak: float
    """[I(code; place in the crop) − the same by chance] / H(code)."""
    shift_kappa: float
    """Cohen's κ of the same pixels in two crops a multiple of the pitch apart."""
    dense_shift_kappa: float
    """The same with a code for every pixel, any odd number of pixels apart."""
    audit_information: float | None = None
    """H̄ − CE in nats after training with context from unrelated places."""
    classes: int
    """How many were asked for."""
    effective_classes: float
    """exp(entropy of the histogram of codes)."""
    largest_class: float
    """Share of the most frequent code."""
    grey_share: float
    """I(code; 50 bins of locally averaged grey) / H(code), largest over the `GREY_SIGMAS` that fit."""
    grey_sigma: float
    """The scale, in pixels, at which it is largest."""
    z_kappa: float
    """Cohen's κ of the codes of adjacent slices. A pure position code has 1."""
    photo_kappa: float
    """Cohen's κ of the codes before and after a photometric change. A pure position code has 1."""
    crops: int
    """Crops that were looked at."""
    crop_vx: int
    """Side of a crop in pixels."""
    null: str
    """What chance was measured by in the position leak."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one gate says, from its figure alone."""

    title: str
    value: float | None
    bound: str
    passed: bool | None
    """None: not measured, so nothing is known."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """All figures with what follows from them."""

    figures: ProofFigures
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool | None:
        """False if any gate is missed, None if one was not measured, else True."""
        answers = [verdict.passed for verdict in self.verdicts]
        return False if False in answers else None if None in answers else True

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        missed = [f"{v.title}: {v.reason}" for v in self.verdicts if v.passed is False]
        open_ = [v.title for v in self.verdicts if v.passed is None]
        if missed:
            return "FAILED. " + "; ".join(missed)
        if open_:
            return f"passed what was measured; not measured: {', '.join(open_)}"
        return "passed: the classes depend on content, by every gate"

    def as_json(self) -> dict[str, Any]:
        """All of it for a file, NaN as None."""
        return {
            "passed": self.passed,
            "sentence": self.sentence,
            **blank_nan(asdict(self)),
        }


def prove(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    *,
    crop_vx: int,
    seed: int = 0,
    crops: int = CROPS,
    audit_information: float | None = None,
) -> Proof:
    """Measure all figures of an encoder on a volume and judge them.

    Args:
        encoder: gives `DenseCodes`, has a `geometry` and a `config`, as those of em_models.
        crop_vx: side of the crops it was trained on, in pixels.
        audit_information: from `em_train.dense.audit`, which trains for it.
    """
    figures = proof_figures(encoder, volume, grey, crop_vx=crop_vx, seed=seed, crops=crops)
    figures = ProofFigures(**asdict(figures) | {"audit_information": audit_information})
    return Proof(figures=figures, verdicts=judge(figures))


def judge(figures: ProofFigures) -> tuple[Verdict, ...]:
    """What each gate says about the figures."""
    verdicts = []
    for gate in GATES:
        value: float | None = getattr(figures, gate.figure)
        limit = gate.limit(figures.classes)
        bound = f"{gate.sense} {limit:g}"
        if value is None:
            passed, reason = None, f"not measured ({gate.meaning})"
        elif math.isnan(value):
            passed, reason = False, f"cannot be measured: {UNMEASURED} ({gate.meaning})"
        else:
            passed = value <= limit if gate.sense == "≤" else value >= limit
            reason = f"{value:.4g}, wanted {bound}: {gate.meaning if passed else gate.missed}"
        verdicts.append(
            Verdict(title=gate.title, value=value, bound=bound, passed=passed, reason=reason)
        )
    return tuple(verdicts)


@torch.inference_mode()
def proof_figures(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    *,
    crop_vx: int,
    seed: int = 0,
    crops: int = CROPS,
) -> ProofFigures:
    """All figures that need no training."""
    encoder.eval()
    geometry = encoder.geometry
    read = partial(read_crops, volume, grey)
    codes_of = partial(crop_codes, encoder)

    wide = min(volume.shape[1:]) >= WIDE * crop_vx
    boxes = (random_boxes if wide else overlapping_boxes)(
        volume, crop_vx, crops, seed, geometry.pitch
    )
    images = read(boxes)[:, 0]  # (N, S, S)
    codes = codes_of(images)  # (N, g, g)
    if wide:
        leak, null = position_leak(codes, seed=seed), "every map rolled by a random offset"
    else:
        leak = position_leak_of_places(codes, boxes, geometry.pitch, seed=seed)
        null = "codes of the same pixels in other crops"

    shift, dense_shift = (
        shift_kappa(encoder, volume, grey, crop_vx, pairs=pairs, dense=dense, seed=seed)
        for pairs, dense in ((PAIRS, False), (DENSE_PAIRS, True))
    )
    pairs = random_boxes(volume, crop_vx, PAIRS, seed + 1, geometry.pitch, depth=2)
    z_kappa = math.nan
    if pairs:
        below, above = (codes_of(one) for one in read(pairs).unbind(1))
        z_kappa = kappa(below, above)
    keys = [Key(0, n) for n in range(len(images))]
    draws = augment.draw(seed, Stream.PHOTOMETRY, keys, (1, 3), "cpu")
    changed = augment.photometry(images[:, None], draws, PHOTOMETRY)[:, 0]
    shares = grey_shares(codes, images, first=geometry.margin, step=geometry.pitch)
    grey_sigma = max(shares, key=lambda sigma: shares[sigma])
    return ProofFigures(
        position_leak=leak,
        shift_kappa=shift,
        dense_shift_kappa=dense_shift,
        classes=encoder.config.classes,
        effective_classes=effective_classes(codes),
        largest_class=largest_share(codes),
        grey_share=shares[grey_sigma],
        grey_sigma=grey_sigma,
        z_kappa=z_kappa,
        photo_kappa=kappa(codes, codes_of(changed)),
        crops=len(boxes),
        crop_vx=crop_vx,
        null=null,
    )


def grey_shares(codes: Tensor, images: Tensor, *, first: int, step: int) -> dict[float, float]:
    """I(code; 50 bins of averaged grey) / H(code) for each σ of `GREY_SIGMAS` that fits.

    Those whose blur reaches as far as the image is wide are left out. The bins hold equally many
    pixels. A code that is a quantisation of the average at one of the
    scales has nearly 1 there.

    Args:
        codes: (N, g, g).
        images: (N, S, S) in [0, 1], the code at (i, j) belongs to pixel first + step · (i, j).
    """
    rows, columns = (slice(first, first + step * (n - 1) + 1, step) for n in codes.shape[1:])
    shares = {}
    for sigma in (s for s in GREY_SIGMAS if round(REACH * s) < min(images.shape[1:])):
        grey = smooth(images, sigma)[:, rows, columns].flatten().double()
        edges = torch.from_numpy(np.quantile(grey.numpy(), np.linspace(0, 1, GREY_BINS + 1)[1:-1]))
        shares[sigma] = share_told(codes, torch.searchsorted(edges, grey))
    return shares


def in_words(proof: Proof) -> Mapping[str, str]:
    """The proof for a report: the verdict first, then every gate, then what proves nothing alone."""
    marks = {True: "passed", False: "FAILED", None: "open"}
    words = {"verdict": proof.sentence}
    words |= {v.title: f"{marks[v.passed]}: {v.reason}" for v in proof.verdicts}
    figures = proof.figures
    words["z κ, photo κ"] = (
        f"{figures.z_kappa:.3f} between adjacent slices, {figures.photo_kappa:.3f} under a "
        "photometric change (a pure position code has 1 in both)"
    )
    return words

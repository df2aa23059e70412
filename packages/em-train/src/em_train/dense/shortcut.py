"""The proof that classes depend on content: is there a shortcut that the encoder has taken?

A code may be a function of where a pixel lies in its crop, or of its brightness alone, and still be
predictable from the neighbouring slices. Each figure here would show one of these, and each gate is
judged from its figure alone, whatever the encoder is or says about itself.

    crops of a volume -> codes -> figures -> gates -> proof
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from em_data import Box, CubeConfig, GreyRange, Key, PlaceSampler, Stream, Volume, augment
from torch import Tensor

from em_train.baselines import smooth
from em_train.dense.codes import crop_codes
from em_train.metrics import (
    contingency,
    effective_classes,
    entropy,
    kappa,
    largest_share,
    mutual_information,
    share_told,
)

CROPS = 320  # random crops of training size
DENSE_PAIRS = 12  # pairs of crops that get a code for every pixel, which takes pitch² as long
PAIRS = 96
PLANES = 8  # slices that a small volume's crops lie in, so that they overlap
MOVED = 4  # of the width of a crop's codes, one part is how far the pictured crops lie apart
BINS = 6  # along each side of the map of a crop's codes
ROLLS = 4  # random rolls of every map that chance is measured by
WIDE = 4  # crops: volumes less wide tie place in the volume to place in the crop
GREY_BINS = 50
# Of the Gaussian that grey is averaged by, in pixels. Wider steps miss codes of scales between.
GREY_SIGMAS = (0.0, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0)
PHOTOMETRY = 0.3  # strength of the photometric change, as in `em_data.augment`

UNMEASURED = "there is a single class, or the volume has no room to move a crop"

Sense = Literal["≤", "≥"]


class Gate(NamedTuple):
    """A bound on one figure, and what it means to miss it."""

    figure: str
    title: str
    sense: Sense
    bound: float
    meaning: str
    missed: str


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
class Figures:
    """What was measured; NaN where it could not be, None where it was not asked for."""

    position_leak: float
    """[I(code; place in the crop) − the same by chance] / H(code)."""
    shift_kappa: float
    """Cohen's κ of the same pixels in two crops a multiple of the pitch apart."""
    dense_shift_kappa: float
    """The same with a code for every pixel, any odd number of pixels apart."""
    audit_information: float | None = None
    """H̄ − CE in nats after training with context from unrelated places."""
    effective_classes: float
    """exp(entropy of the histogram of codes)."""
    largest_class: float
    """Share of the most frequent code."""
    grey_share: float
    """I(code; 50 bins of locally averaged grey) / H(code), largest over `GREY_SIGMAS`."""
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

    figures: Figures
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
        found = asdict(self)
        figures = found["figures"]
        for name, value in figures.items():
            if isinstance(value, float) and math.isnan(value):
                figures[name] = None
        for verdict in found["verdicts"]:
            if verdict["value"] is not None and math.isnan(verdict["value"]):
                verdict["value"] = None
        return {"passed": self.passed, "sentence": self.sentence, **found}


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
        encoder: gives `DenseCodes` and has a `geometry`, as those of em_models.
        crop_vx: side of the crops it was trained on, in pixels.
        audit_information: from `em_train.dense.audit`, which trains for it.
    """
    figures = measure(encoder, volume, grey, crop_vx=crop_vx, seed=seed, crops=crops)
    figures = Figures(**asdict(figures) | {"audit_information": audit_information})
    return Proof(figures=figures, verdicts=judge(figures))


def judge(figures: Figures) -> tuple[Verdict, ...]:
    """What each gate says about the figures."""
    verdicts = []
    for gate in GATES:
        value: float | None = getattr(figures, gate.figure)
        bound = f"{gate.sense} {gate.bound:g}"
        if value is None:
            passed, reason = None, f"not measured ({gate.meaning})"
        elif math.isnan(value):
            passed, reason = False, f"cannot be measured: {UNMEASURED} ({gate.meaning})"
        else:
            passed = value <= gate.bound if gate.sense == "≤" else value >= gate.bound
            reason = f"{value:.4g}, wanted {bound}: {gate.meaning if passed else gate.missed}"
        verdicts.append(
            Verdict(title=gate.title, value=value, bound=bound, passed=passed, reason=reason)
        )
    return tuple(verdicts)


@torch.inference_mode()
def measure(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    *,
    crop_vx: int,
    seed: int = 0,
    crops: int = CROPS,
) -> Figures:
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
    return Figures(
        position_leak=leak,
        shift_kappa=shift,
        dense_shift_kappa=dense_shift,
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


# Crops -------------------------------------------------------------------------------------------


def random_boxes(
    volume: Volume, size_vx: int, count: int, seed: int, pitch: int, *, depth: int = 1
) -> list[Box]:
    """Crops of `depth` slices at random places; none where the volume has fewer slices."""
    if volume.shape[0] < depth:
        return []
    sampler = PlaceSampler([volume.shape], CubeConfig(size_vx=(depth, size_vx, size_vx)), seed)
    return [sampler(Key(0, number)).box for number in range(count)]


def overlapping_boxes(volume: Volume, size_vx: int, count: int, seed: int, pitch: int) -> list[Box]:
    """Crops of few slices, those of a slice a multiple of the pitch apart, so that codes coincide."""
    rng = np.random.default_rng(seed)
    depth, *room = (n - s + 1 for n, s in zip(volume.shape, (1, size_vx, size_vx), strict=True))
    if min(room) < 1:
        random_boxes(volume, size_vx, 1, seed, pitch)  # refuses it, with the reason
    planes = np.unique(np.linspace(0, depth - 1, min(depth, PLANES) + 2).round()[1:-1].astype(int))
    boxes = []
    for z in planes:
        phase = (
            rng.integers(0, pitch, 2) % room
        )  # pixels between codes are not always the same ones
        places = [1 + (n - 1 - p) // pitch for n, p in zip(room, phase, strict=True)]
        for y, x in rng.integers(0, places, (-(-count // len(planes)), 2)) * pitch + phase:
            boxes.append(Box((int(z), int(y), int(x)), (1, size_vx, size_vx)))
    return boxes


def read_crops(volume: Volume, grey: GreyRange, boxes: Sequence[Box]) -> Tensor:
    """The voxels of boxes of one size, in [0, 1]: (N, Z, Y, X)."""
    return torch.from_numpy(np.stack([grey.unit(volume.read(box)) for box in boxes]))


# Position ----------------------------------------------------------------------------------------


def position_leak(codes: Tensor, *, seed: int = 0) -> float:
    """[I(code; place in the crop) − I by chance] / H(code) of maps of codes (N, g, g).

    Chance keeps what a map looks like and takes away where it lies: each map is rolled by its own
    random offset. A code that is the same function of position in every crop has nearly 1.
    """
    n, height, width = codes.shape
    rng = torch.Generator().manual_seed(seed)
    bins = _bins(height, width).expand(n, -1, -1)
    rows, columns = torch.arange(height), torch.arange(width)
    by_chance = []
    for _ in range(ROLLS):
        down = torch.randint(height, (n, 1), generator=rng)
        along = torch.randint(width, (n, 1), generator=rng)
        y, x = (rows + down) % height, (columns + along) % width
        rolled = codes[torch.arange(n)[:, None, None], y[:, :, None], x[:, None, :]]
        by_chance.append(_information(rolled, bins))
    return _share(_information(codes, bins) - sum(by_chance) / ROLLS, codes)


def position_leak_of_places(
    codes: Tensor, boxes: Sequence[Box], pitch: int, *, seed: int = 0
) -> float:
    """`position_leak` where crops are large against the volume: place in the volume is known as well.

    Chance exchanges the codes that the same pixel has in different crops. An encoder that gives it
    the same code everywhere has 0, whatever lies where in the volume. NaN where the crops have so
    little room that all of them lie at about the same place.
    """
    n, height, width = codes.shape
    origins = torch.tensor([box.origin_vx for box in boxes])  # (N, 3)
    moved = (origins.amax(0) - origins.amin(0))[1:]
    if moved.min() < pitch * min(height, width) / BINS:
        return math.nan
    y, x = (
        origins[:, axis, None] + torch.arange(size) * pitch
        for axis, size in ((1, height), (2, width))
    )
    side = int(max(y.max(), x.max())) + 1
    pixel = ((origins[:, 0, None, None] * side + y[:, :, None]) * side + x[:, None, :]).flatten()
    codes, bins = codes.flatten(), _bins(height, width).repeat(n, 1, 1).flatten()

    shuffled = torch.randperm(len(pixel), generator=torch.Generator().manual_seed(seed))
    order = shuffled[pixel[shuffled].argsort(stable=True)]  # by pixel, its crops in random order
    _, count = pixel[order].unique_consecutive(return_counts=True)
    last = count.cumsum(0) - 1
    following = torch.arange(1, len(pixel) + 1)
    following[last] = last - count + 1  # the last crop of a pixel takes the code of its first
    seen_twice = (count > 1).repeat_interleave(count)
    own, other = codes[order][seen_twice], codes[order][following][seen_twice]
    where = bins[order][seen_twice]
    return _share(_information(own, where) - _information(other, where), own)


def shift_kappa(
    encoder: Any,
    volume: Volume,
    grey: GreyRange,
    crop_vx: int,
    *,
    pairs: int,
    dense: bool,
    seed: int = 0,
) -> float:
    """Cohen's κ of the codes that the same pixels have in two crops.

    The crops lie a multiple of the pitch apart, or, with a code for every pixel, an odd number of
    pixels. NaN where the volume has no room to move a crop.
    """
    geometry = encoder.geometry
    step = 1 if dense else geometry.pitch
    room = min(volume.shape[1:]) - crop_vx
    reach = min(room, crop_vx // 3) // step
    if reach < 1:
        return math.nan
    size = crop_vx + reach * step
    boxes = random_boxes(volume, size, pairs, seed + 2, step)
    windows = read_crops(volume, grey, boxes)[:, 0]  # (N, S, S)
    rng = np.random.default_rng(seed)
    moves = rng.integers(0, reach + 1, (pairs, 2, 2))  # (N, which crop, axis)
    if dense:  # an odd distance along both axes
        moves[:, 1] = np.where((moves[:, 1] - moves[:, 0]) % 2, moves[:, 1], moves[:, 1] ^ 1)
        moves[:, 1] = np.where(moves[:, 1] > reach, moves[:, 1] - 2, moves[:, 1])
    crops = [
        torch.stack(
            [
                window[y : y + crop_vx, x : x + crop_vx]
                for window, (y, x) in zip(windows, moves[:, which] * step, strict=True)
            ]
        )
        for which in range(2)
    ]
    first, second = (crop_codes(encoder, one, dense=dense) for one in crops)
    seen: list[tuple[Tensor, Tensor]] = []
    for a, b, (at_a, at_b) in zip(first, second, moves, strict=True):
        down, along = (at_b - at_a).tolist()
        seen.append((_common(a, down, along).flatten(), _common(b, -down, -along).flatten()))
    ones, others = (torch.cat(column) for column in zip(*seen, strict=True))
    return kappa(ones, others)


def _common(codes: Tensor, down: int, along: int) -> Tensor:
    """The part of a map that another one, moved by so many places, shows as well."""
    height, width = codes.shape
    rows = slice(max(0, down), height + min(0, down))
    return codes[rows, max(0, along) : width + min(0, along)]


def _bins(height: int, width: int) -> Tensor:
    """The number of the bin of every place of a map: (g, g)."""
    rows, columns = (torch.arange(n) * BINS // n for n in (height, width))
    return rows[:, None] * BINS + columns


def _information(codes: Tensor, bins: Tensor) -> float:
    return float(mutual_information(contingency(codes, bins)))


def _share(information: float, codes: Tensor) -> float:
    """Of the entropy of the codes; a single code says nothing, about position either."""
    whole = float(entropy(torch.bincount(codes.flatten()).double()))
    return information / whole if whole > 0 else 0.0


# Grey --------------------------------------------------------------------------------------------


def grey_shares(codes: Tensor, images: Tensor, *, first: int, step: int) -> dict[float, float]:
    """I(code; 50 bins of averaged grey) / H(code) for each σ of `GREY_SIGMAS`.

    The bins hold equally many pixels. A code that is a quantisation of the average at one of the
    scales has nearly 1 there.

    Args:
        codes: (N, g, g).
        images: (N, S, S) in [0, 1], the code at (i, j) belongs to pixel first + step · (i, j).
    """
    rows, columns = (slice(first, first + step * (n - 1) + 1, step) for n in codes.shape[1:])
    shares = {}
    for sigma in GREY_SIGMAS:
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


def crops_of_one_place(
    encoder: Any, volume: Volume, grey: GreyRange, *, crop_vx: int
) -> tuple[Tensor, list[Tensor]]:
    """The middle of the volume, and its codes through four crops that lie around it differently.

    Returns the raw pixels (Y, X) that all crops have codes for, and those codes, one per pixel.
    """
    lost, margin = encoder.geometry.trimmed, encoder.geometry.margin
    reach = min(min(volume.shape[1:]) - crop_vx, (crop_vx - lost) // MOVED)
    if reach < 1:
        raise ValueError(
            f"a crop of {crop_vx} px has no room to move in {volume.source} of {volume.shape} voxels; "
            "show the proof on a larger volume"
        )
    size, side = crop_vx + reach, crop_vx - lost - reach
    y0, x0 = ((n - size) // 2 for n in volume.shape[1:])
    plane = read_crops(volume, grey, [Box((volume.shape[0] // 2, y0, x0), (1, size, size))])[0, 0]
    odd = (reach - 1) // 2 | 1
    moves = [(0, 0), (reach, reach), (0, min(odd, reach)), (min(odd, reach), reach)]
    crops = torch.stack([plane[y : y + crop_vx, x : x + crop_vx] for y, x in moves])
    maps = crop_codes(encoder, crops, dense=True)
    shown = [
        codes[reach - y :, reach - x :][:side, :side]
        for codes, (y, x) in zip(maps, moves, strict=True)
    ]
    first = reach + margin
    return plane[first : first + side, first : first + side], shown

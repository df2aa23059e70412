"""How close a restored image is to the truth, how fine it is resolved, and what of it is invented.

Every score of two images is a figure of its own; whatever is compared by spatial frequency is kept as
sums over rings of the spectrum. Sums of slices add up, and ratios are taken of the total: a ratio of
few frequencies is biased, and a mean of such ratios stays so.

**Hallucination gap.** Two copies of the truth T are degraded independently and restored to A and B.
In a band of a quarter octave let c = FRC(A, B), a = FRC(A, T), b = FRC(B, T). For an isotropic linear
filter of T plus noise, a = b = √c: what the copies have in common is the truth. Where both agree on
something else, √c is larger. The gap is the mean over the bands of

    sign(c) √|c| − (a + b) / 2,      weighted by max(0, Σ Re A B*),

the power that the two have in common. Why this weight: frequencies that were filtered away have
correlations of rounding errors, and those that hold only noise have a root that is biased; neither
has common power. Why bands: the wider they are, the less chance there is in a small c and its root.

`invented` is the share of the common power that no isotropic filter of the truth explains; it has no
roots, so it is taken ring by ring. An invention of contrast r relative to the truth, with a spectrum
like it, has invented = r² / (1 + r²) and gap = 1 − 1 / √(1 + r²): .5 and .29 at r = 1, .2 and .11 at
r = ½.

Both are ruled by the coarse structure, where images have most of their power: a faint fine texture
shows in `invented_by_octave` alone. None is 0 for filters that depend on direction (those that
remove stripes), for medians, or for aliased sampling: what these do is shared by the copies, and not
in the truth; nor, in the finest octaves, over slices that were blurred unequally. Structure that is
missing is no invention. The degraded images must be made from the truth: if the truth is a second
recording with noise of its own, the copies agree better with each other than with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from em_losses import ssim as similarity

THRESHOLD = 1 / 7  # of the correlation: Rosenthal & Henderson 2003
LEAST_POWER = 0.01  # relative to the truth's: a band with less was filtered away
LEAST_COMMON = 0.2  # of a band's power, relative to all of it: one with less is noise
OCTAVES = 4  # bands of spatial frequency: ½ to ¼ cycles per pixel, ¼ to ⅛, … and all below

# Differences of grey ------------------------------------------------------------------------------


def psnr(restored: np.ndarray, truth: np.ndarray, *, data_range: float) -> float:
    """Peak signal to noise in dB, 10 log₁₀(data_range² / mean squared error); ∞ where both are equal."""
    check_pair(restored, truth)
    error = float(np.mean((restored.astype(np.float64) - truth) ** 2))
    return 10 * math.log10(data_range**2 / error) if error > 0 else math.inf


def si_psnr(restored: np.ndarray, truth: np.ndarray, *, data_range: float) -> float:
    """PSNR after the best change of contrast and brightness, a · restored + b (Weigert et al. 2018).

    It hides a drift of grey values, which `psnr` counts; the difference of the two is that drift.
    """
    check_pair(restored, truth)
    x, y = restored.astype(np.float64), truth.astype(np.float64)
    x, spread = x - x.mean(), float(x.var())
    scale = float(np.mean(x * y)) / spread if spread > 0 else 0.0
    return psnr(scale * x + y.mean(), y, data_range=data_range)


def ssim(restored: np.ndarray, truth: np.ndarray, *, data_range: float) -> float:
    """Structural similarity of two images (Y, X), at most 1; see `em_losses.restoration.ssim`."""
    check_pair(restored, truth)
    pair = (torch.from_numpy(one.astype(np.float64))[None, None] for one in (restored, truth))
    return float(similarity(*pair, data_range=data_range)[0])


# Sums over rings of the spectrum ------------------------------------------------------------------


def ring_count(*shapes: tuple[int, ...]) -> int:
    """As many rings as the smallest of some images (…, Y, X) can tell apart."""
    return min(min(shape[-2:]) for shape in shapes) // 2


def rings(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """What two images have in common, by spatial frequency: (Y, X) each -> (3, count).

    Σ Re A B*, Σ |A|² and Σ |B|² over the rings k = 1 … count, about k / (2 count) cycles per pixel.
    Images of different sizes have the same rings, so their sums add up. The mean is removed and the
    edges are faded out by a Hann window.
    """
    check_pair(a, b)
    ring, times = _rings_of(a.shape, count)
    return _sums((_spectrum(a), _spectrum(b)), ((0, 1), (0, 0), (1, 1)), ring, times, count)


def frequencies(count: int) -> np.ndarray:
    """Of the rings, in cycles per pixel: (count,)."""
    return np.arange(1, count + 1) / (2 * count)


def frc(sums: np.ndarray) -> np.ndarray:
    """Fourier ring correlation, −1 to 1, from `rings`: (…, 3, R) -> (…, R); 0 without power."""
    cross, power_a, power_b = np.moveaxis(sums, -2, 0)
    return _ratio(cross, np.sqrt(power_a * power_b))


def resolution(curve: np.ndarray, *, threshold: float = THRESHOLD, pixel: float = 1.0) -> float:
    """The finest period that a Fourier ring correlation (R,) resolves, in pixels or in units of `pixel`.

    Where it first falls below the threshold after having been above, between two rings linearly.
    2 pixels, the finest there is, where it never falls; ∞ where it never is above. The coarsest
    rings may be below: a background that was removed.
    """
    above = curve >= threshold
    if not above.any():
        return math.inf
    frequency = frequencies(len(curve))
    first = int(above.argmax())
    below = np.flatnonzero(~above[first:])
    if not len(below):
        return pixel / float(frequency[-1])
    k = first + int(below[0])
    high, low = float(curve[k - 1]), float(curve[k])
    share = (high - threshold) / (high - low)
    return pixel / float(frequency[k - 1] + share * (frequency[k] - frequency[k - 1]))


# What is invented ---------------------------------------------------------------------------------


def agreement(a: np.ndarray, b: np.ndarray, truth: np.ndarray, count: int) -> np.ndarray:
    """What two restored copies have in common with each other and with the truth: -> (6, count).

    Σ Re A B*, Σ Re A T*, Σ Re B T*, Σ |A|², Σ |B|², Σ |T|² over the rings, as in `rings`.
    """
    for one in (a, b):
        check_pair(one, truth)
    ring, times = _rings_of(truth.shape, count)
    spectra = tuple(_spectrum(one) for one in (a, b, truth))
    pairs = ((0, 1), (0, 2), (1, 2), (0, 0), (1, 1), (2, 2))
    return _sums(spectra, pairs, ring, times, count)


def gap(sums: np.ndarray) -> np.ndarray:
    """The hallucination gap, see the top of this file, from `agreement`: (…, 6, R) -> (…).

    NaN where the copies have nothing in common.
    """
    bands = _pooled(sums)
    common = np.maximum(bands[..., 0, :], 0)
    return _ratio((_gaps(bands) * common).sum(-1), common.sum(-1), empty=np.nan)


def invented(sums: np.ndarray) -> np.ndarray:
    """The share of what the copies have in common that is no part of the truth: (…, 6, R) -> (…).

    About 0 for linear filters, to below 0 by chance; NaN where the copies have nothing in common.
    """
    ab, at, bt, _, _, tt = np.moveaxis(sums, -2, 0)
    of_truth = _ratio(at * bt, tt)
    return _ratio((ab - of_truth).sum(-1), np.maximum(ab.sum(-1), 0), empty=np.nan)


def invented_by_octave(sums: np.ndarray, octaves: int = OCTAVES) -> np.ndarray:
    """The same within bands of spatial frequency, the finest first: (…, 6, R) -> (…, octaves).

    From ½ to ¼ cycles per pixel, from there to ⅛, and so on; the last has all that is coarser. NaN
    where nothing is left to judge: a restored image has less than 1 % of the truth's power, or the
    copies have less than 20 % of theirs in common.
    """
    number = _below_finest(sums.shape[-1]) // 4
    found = []
    for octave in range(octaves):
        within = sums[..., np.minimum(number, octaves - 1) == octave]
        ab, _, _, aa, bb, tt = np.moveaxis(within.sum(-1), -1, 0)
        power = np.sqrt(aa * bb)
        there = (power > LEAST_POWER * tt) & (ab > LEAST_COMMON * power)
        found.append(np.where(there, invented(within), np.nan))
    return np.stack(found, -1)


def linear_twin(image: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """An image filtered linearly, alike in all directions, to the spectrum of a restored one: (Y, X).

    Its gap shows what the measure says of filtering as strong as that which invents nothing.
    """
    check_pair(restored, image)
    count = ring_count(image.shape)
    _, before, after = rings(image, restored, count)
    frequency = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    gain = np.interp(frequency, frequencies(count), np.sqrt(_ratio(after, before)))
    mean = image.mean()
    return restored.mean() + np.fft.irfft2(np.fft.rfft2(image - mean) * gain, image.shape)


class Blank(NamedTuple):
    """Contrast (standard deviation) of what is made of nothing, relative to that of real images."""

    flat: float
    noise: float


def blank_contrast(
    restore: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    *,
    mean: float = 0.5,
    contrast: float = 0.15,
    seed: int = 0,
) -> Blank:
    """What a restoration makes of a flat image, and of white noise as contrasty as real images.

    Args:
        restore: takes an image of this shape, (Y, X) or (Z, Y, X).
        shape: of the images given to it.
        mean: mean of real images.
        contrast: standard deviation of real images, which the results are divided by.
        seed: of the noise.
    """
    noise = np.random.default_rng(seed).standard_normal(shape)
    images = (np.full(shape, mean), np.clip(mean + contrast * noise, 0, 1))
    found = (restore(one.astype(np.float32)).astype(np.float64) for one in images)
    return Blank(*(float(one.std()) / contrast for one in found))


def check_pair(image: np.ndarray, truth: np.ndarray) -> None:
    """Refuse what is no pair of images of one size."""
    if image.ndim != 2 or image.shape != truth.shape:
        raise ValueError(
            f"the restored image has the shape {image.shape} and the truth {truth.shape}; "
            "wanted two images (Y, X) of one size"
        )


# Details ------------------------------------------------------------------------------------------


def _spectrum(image: np.ndarray) -> np.ndarray:
    """(Y, X) -> (Y, X // 2 + 1) complex, of the windowed image without its mean."""
    y, x = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in image.shape)
    window = y[:, None] * x
    mean = (image * window).sum() / window.sum()  # of the window: then frequency 0 leaks nowhere
    return np.fft.rfft2((image - mean) * window)


def _rings_of(shape: tuple[int, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of the ring of every frequency, 0 for none, and how many frequencies it stands for."""
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])
    radius = np.hypot(rows, columns)
    ring = np.maximum(np.rint(radius * 2 * count), 1).astype(np.intp)
    ring[(radius == 0) | (radius > 0.5)] = 0
    times = np.where((columns == 0) | (columns == 0.5), 1.0, 2.0)  # of x and −x, one is stored
    return ring, np.broadcast_to(times, radius.shape)


def _sums(
    spectra: tuple[np.ndarray, ...],
    pairs: tuple[tuple[int, int], ...],
    ring: np.ndarray,
    times: np.ndarray,
    count: int,
) -> np.ndarray:
    """Σ Re F G* over every ring for pairs of spectra: (pairs, count)."""
    products = ((spectra[i] * spectra[j].conj()).real * times for i, j in pairs)
    return np.stack(
        [np.bincount(ring.ravel(), one.ravel(), minlength=count + 1)[1:] for one in products]
    )


def _below_finest(count: int) -> np.ndarray:
    """How many quarter octaves rings lie below the finest frequency: (count,) int, falling."""
    return np.floor(4 * np.log2(0.5 / frequencies(count)) + 1e-9).astype(np.intp)


def _pooled(sums: np.ndarray) -> np.ndarray:
    """Sums over bands of a quarter octave: (…, R) -> (…, Q)."""
    quarter = _below_finest(sums.shape[-1])
    starts = np.flatnonzero(np.diff(quarter, prepend=quarter[0] + 1))
    return np.add.reduceat(sums, starts, axis=-1)


def _gaps(bands: np.ndarray) -> np.ndarray:
    """Of every band, without weight: (…, 6, Q) -> (…, Q)."""
    ab, at, bt, aa, bb, tt = np.moveaxis(bands, -2, 0)
    copies = _ratio(ab, np.sqrt(aa * bb))
    with_truth = _ratio(at, np.sqrt(aa * tt)) + _ratio(bt, np.sqrt(bb * tt))
    return np.sign(copies) * np.sqrt(np.abs(copies)) - with_truth / 2


def _ratio(above: np.ndarray, below: np.ndarray, *, empty: float = 0.0) -> np.ndarray:
    """A quotient, with a value of its own where the divisor is 0."""
    safe = np.where(below > 0, below, 1)
    return np.where(below > 0, above / safe, empty)

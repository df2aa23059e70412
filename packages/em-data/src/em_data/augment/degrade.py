"""Images made worse as a microscope makes them, to learn from their repair.

How strongly each kind befalls a sample is drawn from the seed and its key; what is drawn anew in
every scan (noise, stripes, uneven background) also from the number of the copy. So copies 0 and 1 of
a sample are two scans of one place with the same focus, pixel and dose: whatever both show is tissue,
blur or charging, and whatever a network restores alike in both and is not there, it invented.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from em_data.augment.augment import draw
from em_data.augment.blur import blur
from em_data.augment.noise import add_gaussian, add_poisson, add_scan
from em_data.augment.sampling import coarsen, refine
from em_data.augment.shading import HALO_VX, add_background, add_charging, add_curtains
from em_data.sampler.randomness import Key, Stream, random_at

Range = tuple[float, float]

SAMPLING = ("defocus", "sampling")
BACKGROUND = ("charging", "background", "curtains")
NOISE = ("dose", "detector", "scan", "hot", "lost")
KINDS = (*SAMPLING, *BACKGROUND, *NOISE)  # the place of a kind decides its random numbers
# As in a microscope: focus and specimen, then pixels, then what their recording adds.
BEFORE_SAMPLING, AFTER_SAMPLING = ("defocus", *BACKGROUND), NOISE


@dataclass(frozen=True, kw_only=True)
class DegradeConfig:
    """Probabilities that a sample is degraded, each kind by itself, and how strongly: (low, high)."""

    defocus: float = 0.0
    """Probability that a sample is out of focus."""
    defocus_vx: Range = (0.3, 1.5)
    """Deviation of that Gaussian blur, in voxels."""
    sampling: float = 0.0
    """Probability that a sample is recorded in coarser pixels, then interpolated."""
    sampling_factors: tuple[int, ...] = (2, 4)
    """Sides of such a pixel, in voxels; each is as likely as the others."""
    charging: float = 0.0
    """Probability of halos around the brightest places, and dark streaks behind them along x."""
    charging_strength: Range = (0.03, 0.1)
    """Brightness of the brightest halo of a slice, as a share of the grey range."""
    background: float = 0.0
    """Probability of a smooth uneven background, partly added to and partly multiplied by the image."""
    background_strength: Range = (0.01, 0.04)
    """Deviation of the background at middle grey, as a share of the grey range."""
    background_vx: Range = (150.0, 800.0)
    """Wavelengths of the background, in voxels."""
    curtains: float = 0.0
    """Probability of curtaining: stripes along y, by which the image is multiplied."""
    curtains_strength: Range = (0.01, 0.06)
    """Deviation of the stripes, as a share of the grey value."""
    curtains_vx: Range = (1.0, 6.0)
    """Distance across the stripes at which their correlation falls to 1/e, in voxels."""
    curtains_length_vx: Range = (300.0, 2000.0)
    """Distance along the stripes over which they become others, in voxels."""
    dose: float = 0.0
    """Probability of Poisson noise."""
    dose_electrons: Range = (20.0, 200.0)
    """Electrons that a white pixel counts on average; their logarithm is drawn evenly."""
    detector: float = 0.0
    """Probability of Gaussian noise, the same everywhere."""
    detector_strength: Range = (0.01, 0.05)
    """Deviation of that noise, as a share of the grey range."""
    scan: float = 0.0
    """Probability of noise of a scan along x: rows with an offset, and noise correlated along rows."""
    scan_offset: Range = (0.0, 0.01)
    """Deviation of the offsets of rows, as a share of the grey range."""
    scan_strength: Range = (0.01, 0.05)
    """Deviation of the correlated noise, as a share of the grey range."""
    scan_vx: Range = (1.0, 8.0)
    """Distance along a row at which its correlation falls to 1/e, in pixels."""
    hot: float = 0.0
    """Probability of hot pixels, which are white."""
    hot_share: Range = (1e-5, 1e-3)
    """Share of the pixels that are hot; its logarithm is drawn evenly."""
    lost: float = 0.0
    """Probability of lost rows, which are black."""
    lost_share: Range = (0.003, 0.02)
    """Share of the rows that are lost."""
    clip: bool = True
    """Cut the result to [0, 1]; without it the noise keeps its mean, as blind spots need."""

    def __post_init__(self) -> None:
        for name in KINDS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a probability, wanted 0 to 1, got {getattr(self, name)}; change it"
                )
        for name, least, most in (
            ("defocus_vx", 0, 20),
            ("charging_strength", 0, 1),
            ("background_strength", 0, 1),
            ("background_vx", 16, 1e6),
            ("curtains_strength", 0, 1),
            ("curtains_vx", 0, 64),
            ("curtains_length_vx", 16, 1e6),
            ("dose_electrons", 1, 1e6),
            ("detector_strength", 0, 1),
            ("scan_offset", 0, 1),
            ("scan_strength", 0, 1),
            ("scan_vx", 0, 64),
            ("hot_share", 1e-6, 1),
            ("lost_share", 0, 1),
        ):
            pair = getattr(self, name)
            if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
                raise ValueError(
                    f"{name} must be a pair (low, high) within {least:g} to {most:g}, "
                    f"got {tuple(pair)}; change it"
                )
        factors = self.sampling_factors
        if not factors or any(f != int(f) or not 2 <= f <= 16 for f in factors):
            raise ValueError(
                f"sampling_factors must be whole numbers from 2 to 16, got {tuple(factors)}; "
                "(2, 4) is usual"
            )


def only(
    config: DegradeConfig, kinds: Iterable[str], *, probability: float | None = None
) -> DegradeConfig:
    """The same with every other kind off; `probability`, if given, is that of each kind named.

    >>> weak = only(DegradeConfig(dose=0.5, hot=0.5, sampling=0.1), SAMPLING, probability=1)
    >>> weak.dose, weak.hot, weak.sampling
    (0.0, 0.0, 1)
    """
    kept = set(kinds)
    if unknown := sorted(kept - set(KINDS)):
        raise ValueError(f"no degradation {', '.join(unknown)}; there are {', '.join(KINDS)}")
    off: dict[str, float] = {kind: 0.0 for kind in KINDS if kind not in kept}
    on = {} if probability is None else dict.fromkeys(kept, probability)
    return replace(config, **off, **on)  # type: ignore[arg-type]


class Drawn(NamedTuple):
    """The samples that one kind befalls, and their random numbers."""

    uniform: Tensor  # (N, 3) in [0, 1): how strongly, the same in every copy
    randoms: list[np.random.Generator]  # N: what a copy draws anew
    device: torch.device

    def amount(self, limits: Range, column: int, *, evenly: bool = True) -> Tensor:
        """A number of each sample between two limits, its logarithm if not itself: (N,)."""
        low, high = limits if evenly else (math.log(limits[0]), math.log(limits[1]))
        drawn = low + (high - low) * self.uniform[:, column]
        return (drawn if evenly else drawn.exp()).to(self.device)

    def words(self) -> Tensor:
        """What `noise.normal` makes numbers of: (N, 2) int32."""
        drawn = [random.integers(-(2**31), 2**31, 2) for random in self.randoms]
        return torch.from_numpy(np.stack(drawn).astype(np.int32)).to(self.device)

    def numbers(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1): (N, *shape)."""
        drawn = [random.random(shape, dtype=np.float32) for random in self.randoms]
        return torch.from_numpy(np.stack(drawn)).to(self.device)


def degrade(
    images: Tensor, keys: Sequence[Key], config: DegradeConfig, *, seed: int, copy: int = 0
) -> Tensor:
    """Degrade a batch, each sample by itself: (B, Z, Y, X) in [0, 1] -> the same shape, float32.

    The kinds and their strengths depend on `seed` and the key, noise and shading also on `copy`:
    two copies differ as two scans of one place do, which Fourier ring correlation asks for. Charging
    follows the image, so copies share it like their blur. For a draw of everything, take another seed.

    Args:
        images: stay as they are. Strengths are those of the sample, noise is that of each slice.
        keys: of the samples.
        config: what may happen.
        seed: of the run.
        copy: number of the scan, from 0.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {str(images.dtype).removeprefix('torch.')} of shape "
            f"{tuple(images.shape)}; wanted floats (B, Z, Y, X) in [0, 1], as Batch.image() gives"
        )
    if len(keys) != len(images):
        raise ValueError(f"wanted one key for each of {len(images)} images, got {len(keys)}")
    if copy < 0:
        raise ValueError(
            f"copy is the number of a scan, wanted 0 or more, got {copy}; count from 0"
        )
    degraded = images.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if len(keys) == 0:
        return degraded
    uniform = draw(seed, Stream.DEGRADE, keys, (len(KINDS), 4), "cpu")  # whether, and how strongly
    whether, which = uniform[:, KINDS.index("sampling"), :2].unbind(1)
    factors = torch.tensor(config.sampling_factors)[
        (which.double() * len(config.sampling_factors)).long()
    ]
    factors = torch.where(whether < config.sampling, factors, 1)  # (B,)

    def change(images: Tensor, kinds: Sequence[str], samples: Tensor, places: Tensor) -> None:
        """Some samples of the batch, (N,), that lie at some places of images, (N,); in place."""
        for kind in kinds:
            mine = uniform[samples, KINDS.index(kind)]
            rows = (mine[:, 0] < getattr(config, kind)).nonzero()[:, 0]
            if len(rows):
                counter = copy << 8 | KINDS.index(kind)
                randoms = [
                    random_at(seed, Stream.COPY, keys[i], counter) for i in samples[rows].tolist()
                ]
                drawn = Drawn(mine[rows, 1:], randoms, images.device)
                where = places[rows].to(images.device)
                changed = CHANGES[kind](images.index_select(0, where), drawn, config)
                images.index_copy_(0, where, changed)

    everyone = torch.arange(len(keys))
    change(degraded, BEFORE_SAMPLING, everyone, everyone)
    for factor in factors.unique().tolist():
        samples = (factors == factor).nonzero()[:, 0]
        if factor == 1:
            change(degraded, AFTER_SAMPLING, samples, samples)
        else:
            where = samples.to(images.device)
            pixels = coarsen(degraded.index_select(0, where), factor)
            change(pixels, AFTER_SAMPLING, samples, everyone[: len(samples)])
            degraded.index_copy_(0, where, refine(pixels, factor, images.shape[2:]))
    return degraded.clamp_(0, 1) if config.clip else degraded


# What each kind does to the samples that it befalls, (N, Z, Y, X) -> the same ---------------------


def _defocus(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    deviation = drawn.amount(config.defocus_vx, 0).repeat_interleave(images.shape[1])
    return blur(images.flatten(0, 1), deviation, config.defocus_vx[1]).view_as(images)


def _charging(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    return add_charging(
        images,
        drawn.amount(config.charging_strength, 0),
        drawn.amount(HALO_VX, 1),
        drawn.amount((0.3, 1), 2),
    )


def _background(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    strength, gain = drawn.amount(config.background_strength, 0), drawn.amount((0, 1), 1)
    waves = drawn.numbers(images.shape[1], WAVES, 3)
    return add_background(images, strength, gain, waves, config.background_vx)


def _curtains(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    return add_curtains(
        images,
        drawn.amount(config.curtains_strength, 0),
        drawn.amount(config.curtains_vx, 1),
        drawn.amount(config.curtains_length_vx, 2, evenly=False),
        drawn.words(),
        most_vx=config.curtains_vx[1],
    )


def _dose(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    electrons = drawn.amount(config.dose_electrons, 0, evenly=False)
    return add_poisson(images, electrons, drawn.words())


def _detector(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    return add_gaussian(images, drawn.amount(config.detector_strength, 0), drawn.words())


def _scan(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    return add_scan(
        images,
        drawn.amount(config.scan_offset, 0),
        drawn.amount(config.scan_strength, 1),
        drawn.amount(config.scan_vx, 2),
        drawn.words(),
        drawn.words(),
        most_vx=config.scan_vx[1],
    )


def _hot(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    shares = drawn.amount(config.hot_share, 0, evenly=False).tolist()
    count = images[0].numel()
    for image, share, random in zip(images, shares, drawn.randoms, strict=True):
        hot = random.integers(count, size=random.binomial(count, share))
        image.view(-1)[torch.from_numpy(hot).to(image.device)] = 1
    return images


def _lost(images: Tensor, drawn: Drawn, config: DegradeConfig) -> Tensor:
    share = drawn.amount(config.lost_share, 0)[:, None, None, None]
    return images * (drawn.numbers(*images.shape[1:3], 1) >= share)


WAVES = 4
CHANGES: dict[str, Callable[[Tensor, Drawn, DegradeConfig], Tensor]] = {
    "defocus": _defocus,
    "charging": _charging,
    "background": _background,
    "curtains": _curtains,
    "dose": _dose,
    "detector": _detector,
    "scan": _scan,
    "hot": _hot,
    "lost": _lost,
}

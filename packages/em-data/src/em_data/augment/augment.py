"""Augmentation of whole batches on the device, each sample reproducible by itself.

Two steps, kept apart: `draw` makes the random numbers of each sample from its key on the CPU, the
other functions are deterministic in them. So a batch looks the same on any device and any rank.

    cut crops of source_vx(size) -> apply -> images, labels and mask of the size, augmented
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from em_data.augment.blur import blur
from em_data.augment.clahe import clahe
from em_data.augment.defects import NUMBERS, DefectConfig, damage, lose
from em_data.augment.noise import add_gaussian, add_poisson
from em_data.augment.warp import (
    CHOICES,
    Warp,
    WarpConfig,
    check_source,
    control_shape,
    make_warp,
    margin_vx,
)
from em_data.geometry import Float3, Int3, int3
from em_data.sampler.randomness import Key, Stream, random_at


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is changed in a sample, and how far; `presets.py` has sets for kinds of microscopy."""

    warp: WarpConfig = field(default_factory=WarpConfig)
    """What moves voxels."""
    defects: DefectConfig = field(default_factory=DefectConfig)
    """What happens to single slices."""
    photometry: float = 0.3
    """Strength of the changes of contrast, brightness and gamma; 0 changes nothing."""
    photometry_per_slice: float = 0.0
    """Share of these changes that every slice draws by itself; the rest the whole sample shares."""
    share: float = 0.3
    """Share of the samples that each of blur, Gaussian and Poisson noise and CLAHE befalls."""
    blur_vx: float = 1.2
    """Largest deviation of the blur within slices, in voxels."""
    gaussian: float = 0.06
    """Largest deviation of Gaussian noise, as a share of the grey range."""
    electrons: float = 40.0
    """Fewest electrons that a white voxel counts in Poisson noise; 0 for none."""
    clahe_clip: float = 0.0
    """Clip limit of CLAHE, 2 to 4 is usual; 0 for none."""
    clahe_tile_vx: int = 64
    """Side of its tiles in voxels."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("photometry", 0, 4),
            ("photometry_per_slice", 0, 1),
            ("share", 0, 1),
            ("blur_vx", 0, 20),
            ("gaussian", 0, 1),
            ("electrons", 0, math.inf),
            ("clahe_tile_vx", 1, math.inf),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"{name} must lie in {least} to {most:g}, got {getattr(self, name)}; change it"
                )
        if self.clahe_clip and self.clahe_clip < 1:
            raise ValueError(
                f"clahe_clip must be 0 (none) or at least 1, got {self.clahe_clip}; 2 to 4 is usual"
            )


def source_vx(size_vx: Int3, config: AugmentConfig, voxel_size_nm: Float3 | None = None) -> Int3:
    """The crop to cut so that `apply` finds all that it may show: nothing is ever mirrored.

    >>> source_vx((5, 256, 256), AugmentConfig(), (40, 4, 4))
    (5, 424, 424)
    """
    margin = margin_vx(config.warp, size_vx, voxel_size_nm)
    return int3([n + 2 * m for n, m in zip(size_vx, margin, strict=True)])


def apply(
    images: Tensor,
    labels: Tensor | None,
    valid: Tensor | None,
    keys: Sequence[Key],
    config: AugmentConfig,
    *,
    seed: int,
    size_vx: Int3 | None = None,
    voxel_size_nm: Float3 | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Augment a batch: images, labels and valid mask, of `size_vx`.

    A sample depends on `seed` and its key alone. Labels and mask are the same in any batch and,
    but for ties, on any device; grey values are so to the last bits of float32.

    Args:
        images: (B, Z, Y, X) in [0, 1], of at least `source_vx`.
        labels: (B, C, Z, Y, X) of any type: classes, channels, instances of any number.
        valid: like `labels`, with the same or one channel.
        keys: of the samples.
        config: what to do.
        seed: of the run.
        size_vx: what comes out; without it as much as goes in, where the warp needs no margin.
        voxel_size_nm: (z, y, x); unknown, z is never exchanged with y and x.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(
            f"images are {str(images.dtype).removeprefix('torch.')} of shape "
            f"{tuple(images.shape)}; wanted floats (B, Z, Y, X) in [0, 1], as Batch.image() gives"
        )
    if len(keys) != len(images):
        raise ValueError(f"wanted one key for each of {len(images)} images, got {len(keys)}")
    for name, other in (("labels", labels), ("valid", valid)):
        if other is not None and (len(other), *other.shape[2:]) != tuple(images.shape):
            raise ValueError(
                f"{name} have shape {tuple(other.shape)} beside images of {tuple(images.shape)}; "
                "wanted (B, C, Z, Y, X) of the same voxels, cut both from one box"
            )
    warps = draw_warps(
        keys,
        config.warp,
        seed=seed,
        size_vx=size_vx or int3(images.shape[1:]),
        source_vx=int3(images.shape[1:]),
        voxel_size_nm=voxel_size_nm,
    )
    others = [other for other in (labels, valid) if other is not None]
    shown = [
        warp.sample(image, [other[i] for other in others])
        for i, (warp, image) in enumerate(zip(warps, images, strict=True))
    ]
    changed = change_grey(torch.stack([image for image, _ in shown]), keys, config, seed=seed)
    moved = iter([torch.stack([rest[i] for _, rest in shown]) for i in range(len(others))])
    return (
        changed,
        None if labels is None else next(moved),
        None if valid is None else next(moved),
    )


def draw_warps(
    keys: Sequence[Key],
    config: WarpConfig,
    *,
    seed: int,
    size_vx: Int3,
    source_vx: Int3,
    voxel_size_nm: Float3 | None = None,
) -> list[Warp]:
    """The warps that `apply` uses: `warp.to_crop(points_vx)` moves points with their sample."""
    check_source(config, size_vx, source_vx, voxel_size_nm)
    shape = control_shape(config, size_vx, voxel_size_nm)
    numbers = zip(
        draw(seed, Stream.WARP, keys, (CHOICES,), "cpu"),
        draw(seed, Stream.ELASTIC, keys, shape, "cpu"),
        draw(seed, Stream.SHIFT, keys, (size_vx[0], 4), "cpu"),
        strict=True,
    )
    return [
        make_warp(
            config, size_vx, source_vx, voxel_size_nm, choices=choices, elastic=elastic, slips=slips
        )
        for choices, elastic, slips in numbers
    ]


def change_grey(images: Tensor, keys: Sequence[Key], config: AugmentConfig, *, seed: int) -> Tensor:
    """All that `apply` does after the warp, in place: (B, Z, Y, X) in [0, 1] -> the same.

    In the order in which a microscope does it: focus, damaged slices, contrast, noise, lost slices.
    """
    z, device = images.shape[1], images.device
    amounts = draw(seed, Stream.EFFECT, keys, (8,), "cpu")
    chosen = amounts[:, :4] < config.share  # (B, 4)
    amounts = amounts[:, 4:]

    some = (chosen[:, 0] & (config.blur_vx > 0)).nonzero()[:, 0]
    if len(some):
        sigma = (config.blur_vx * amounts[some, 0]).to(device).repeat_interleave(z)
        blurred = blur(images[some].flatten(0, 1), sigma, config.blur_vx)
        images[some] = blurred.view(-1, *images.shape[1:])

    defects = draw(seed, Stream.DEFECT, keys, (z, NUMBERS), "cpu")
    images = damage(images, defects, config.defects)

    some = (chosen[:, 1] & (config.clahe_clip > 0)).nonzero()[:, 0]
    if len(some):
        images[some] = clahe(images[some], tile_vx=config.clahe_tile_vx, clip=config.clahe_clip)
    uniform = draw(seed, Stream.PHOTOMETRY, keys, (z + 1, 3), "cpu")
    mixed = torch.lerp(uniform[:, :1], uniform[:, 1:], config.photometry_per_slice)
    images = photometry(images, mixed.to(device), config.photometry)

    drawn = [random_at(seed, Stream.NOISE, key).integers(-(2**31), 2**31, 4) for key in keys]
    words = torch.from_numpy(np.stack(drawn).astype(np.int32))  # (B, 4)
    some = (chosen[:, 2] & (config.electrons > 0)).nonzero()[:, 0]
    if len(some):
        electrons = config.electrons / amounts[some, 2].clamp(min=0.05) ** 2  # noise ~ amount
        noisy = add_poisson(images[some], electrons.to(device), words[some, :2].to(device))
        images[some] = noisy.clamp_(0, 1)
    some = (chosen[:, 3] & (config.gaussian > 0)).nonzero()[:, 0]
    if len(some):
        deviation = config.gaussian * amounts[some, 3]
        noisy = add_gaussian(images[some], deviation.to(device), words[some, 2:].to(device))
        images[some] = noisy.clamp_(0, 1)
    return lose(images, defects, config.defects)


def draw(
    seed: int, stream: int, keys: Sequence[Key], shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Uniform numbers in [0, 1) for every sample: (B, *shape)."""
    rows = [random_at(seed, stream, key).random(shape, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(device)


def photometry(slices: Tensor, uniform: Tensor, strength: float) -> Tensor:
    """Change contrast, brightness and gamma of every slice by itself.

    At strength s: contrast × exp(±s/2) about the slice's mean, brightness ± s/4 of the range,
    gamma exp(±s/2).

    Args:
        slices: (B, Z, Y, X) in [0, 1].
        uniform: (B, Z, 3) from `draw`.
        strength: 0 changes nothing; .3 suits real EM.
    """
    if strength == 0:
        return slices
    contrast, brightness, gamma = (uniform[..., None, None] * 2 - 1).unbind(
        2
    )  # each (B, Z, 1, 1) in [-1, 1)
    mean = slices.mean((-2, -1), keepdim=True)
    changed = (slices - mean) * torch.exp(strength / 2 * contrast) + mean
    changed = (changed + strength / 4 * brightness).clamp(1e-4, 1)
    # Twice as fast as a power.
    return (changed.log() * torch.exp(strength / 2 * gamma)).exp()

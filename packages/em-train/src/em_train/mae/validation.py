"""How well hidden patches are filled in: on cubes that were held out, against in-painting.

All methods fill in the same patches, and their error is measured in the same units: those of each
patch, minus its mean, over its standard deviation. In-painting is scored twice. As it is, with the mean
and standard deviation of the truth; and helped as much as anything could: its patches are brought to
mean 0 and standard deviation 1, as the model's targets are, and scaled by the factor that suits it best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from em_data.geometry import Int3
from em_data.loader import Batch
from em_losses import patch_targets, reconstruction_error
from em_models import Mae, Masks, Voxels
from em_models.patches import grid_of, patchify
from torch import Tensor

from em_train.engine import precision
from em_train.engine.precision import Precision
from em_train.mae.data import DataConfig, voxels_of
from em_train.mae.inpaint import inpaint

CHECKED = 2**32  # the epoch that masks of held-out cubes are drawn for: no sample has it
EPS = 1e-6  # beside the variance of a patch, for voxels in [0, 1]


@dataclass(frozen=True, kw_only=True)
class HeldOutErrors:
    """Errors on the held-out cubes, in units of the variance of each hidden patch."""

    error: float
    """Of the model."""
    trilinear: float
    """Of in-painting."""
    trilinear_fitted: float
    """Of in-painting with the mean, the standard deviation and the factor that suit it best."""


def unit_of(voxels: Voxels) -> float:
    """What stored values are multiplied by for the loss: bytes become [0, 1]."""
    return 1.0 if voxels.stored.is_floating_point() else 1 / 255


def checked_masks(model: Mae, voxels: Voxels, number: int, seed: int) -> Masks:
    """The masks of the held-out batch with this number, the same at every step."""
    size = len(voxels.stored)
    keys = [(CHECKED, number * size + i) for i in range(size)]
    return model.draw(voxels, keys, seed=seed)


@torch.inference_mode()
def model_error(
    model: Mae,
    batches: Sequence[Batch],
    data: DataConfig,
    *,
    device: torch.device,
    kind: Precision,
    seed: int,
) -> float:
    """The mean squared error on held-out cubes."""
    errors = []
    for number, batch in enumerate(batches):
        voxels = voxels_of(batch.to(device), data)
        masks = checked_masks(model, voxels, number, seed)
        with precision.autocast(kind, device):
            prediction = model(voxels, masks)
        errors.append(error_of(prediction, voxels, masks, model.config.encoder.patch_vx))
    return float(torch.stack(errors).mean())


def error_of(prediction: Tensor, voxels: Voxels, masks: Masks, patch_vx: Int3) -> Tensor:
    """The loss of predicted patches."""
    return reconstruction_error(
        prediction,
        voxels.stored,
        patch_vx,
        tokens=masks.hidden,
        scale=unit_of(voxels),
        eps=EPS,
    )


@torch.inference_mode()
def inpainting_errors(
    model: Mae, batches: Sequence[Batch], data: DataConfig, *, seed: int
) -> tuple[float, float]:
    """Errors of in-painting on the same cubes and masks: as it is, and helped."""
    patch = model.config.encoder.patch_vx
    sums = torch.zeros(5, dtype=torch.float64)
    for number, batch in enumerate(batches):
        voxels = voxels_of(batch, data)
        masks = checked_masks(model, voxels, number, seed).to("cpu")
        target, mean, variance = patch_targets(
            voxels.stored, patch, tokens=masks.hidden, scale=unit_of(voxels), eps=EPS
        )
        filled = inpaint(voxels.stored[:, 0].float() * unit_of(voxels), shown(voxels, masks, patch))
        patches = patchify(filled[:, None], patch, tokens=masks.hidden)
        plain = (patches - mean[..., None]) / (variance[..., None] + EPS).sqrt()
        own, _, _ = patch_targets(filled[:, None], patch, tokens=masks.hidden, eps=EPS)
        parts = (
            (plain - target).square().sum(),
            target.square().sum(),
            (target * own).sum(),
            own.square().sum(),
            torch.tensor(float(target.numel())),
        )
        sums += torch.stack(parts).double()
    error, tt, to, oo, values = sums.tolist()
    fitted = (tt - (to * to / oo if oo > 0 else 0.0)) / values
    return error / values, fitted


def shown(voxels: Voxels, masks: Masks, patch_vx: Int3) -> Tensor:
    """Which voxels the model sees: (B, Z, Y, X) bool."""
    size = tuple(voxels.stored.shape[2:])
    grid = grid_of(size, patch_vx)
    visible = torch.zeros(len(voxels.stored), math.prod(grid), dtype=torch.bool)
    visible.scatter_(1, masks.visible.cpu(), True)
    found = visible.unflatten(1, grid)
    for axis, side in enumerate(patch_vx, 1):
        found = found.repeat_interleave(side, axis)
    return found


def filled_in(prediction: Tensor, voxels: Voxels, masks: Masks, patch_vx: Int3) -> Tensor:
    """Cubes in [0, 1] with hidden patches as predicted, at their true mean and contrast: (B, Z, Y, X)."""
    _, mean, variance = patch_targets(
        voxels.stored, patch_vx, tokens=masks.hidden, scale=unit_of(voxels), eps=EPS
    )
    patches = prediction.float() * (variance[..., None] + EPS).sqrt() + mean[..., None]
    whole = patchify(voxels.stored, patch_vx) * unit_of(voxels)  # (B, N, D)
    index: Any = masks.hidden[..., None].expand(-1, -1, whole.shape[2])
    whole = whole.scatter(1, index, patches)
    (z, y, x), (pz, py, px) = grid_of(tuple(voxels.stored.shape[2:]), patch_vx), patch_vx
    split = whole.view(-1, z, y, x, pz, py, px).permute(0, 1, 4, 2, 5, 3, 6)
    return split.reshape(-1, z * pz, y * py, x * px)


@torch.inference_mode()
def spectrum(
    model: Mae,
    batches: Sequence[Batch],
    data: DataConfig,
    *,
    device: torch.device,
    kind: Precision,
    seed: int,
    bins: int = 8,
) -> list[tuple[float, float]]:
    """Share of the power of hidden patches that is missed, by frequency: (cycles per voxel, share).

    0 is perfect and 1 is what a flat patch scores. Waves are those of the cosine transform, which does
    not take a patch for periodic; frequencies are the lengths of (fz, fy, fx). The mean is left out.
    """
    patch = model.config.encoder.patch_vx
    axes = [torch.arange(n) / (2 * n) for n in patch]
    length = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    top = float(length.max())
    bin_of = (length / top * bins).long().clamp(max=bins - 1).flatten()
    bin_of[0] = bins
    sums = torch.zeros(3, bins + 1, dtype=torch.float64)
    for number, batch in enumerate(batches):
        voxels = voxels_of(batch.to(device), data)
        masks = checked_masks(model, voxels, number, seed)
        with precision.autocast(kind, device):
            prediction = model(voxels, masks)
        target, _, _ = patch_targets(
            voxels.stored, patch, tokens=masks.hidden, scale=unit_of(voxels), eps=EPS
        )
        for row, values in enumerate((prediction.float() - target, target)):
            waves = torch.einsum(
                "bnzyx,iz,jy,kx->bnijk",
                values.float().cpu().unflatten(-1, patch),
                *map(cosines, patch),
            )
            power = waves.square().mean((0, 1)).flatten().double()
            sums[row].index_add_(0, bin_of, power)
        sums[2].index_add_(0, bin_of, length.flatten().double())
    counts = torch.bincount(bin_of, minlength=bins + 1) * len(batches)
    return [
        (float(sums[2, i] / counts[i]), float(sums[0, i] / sums[1, i]))
        for i in range(bins)
        if counts[i] and sums[1, i] > 0
    ]


def cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n values: wave by place, (n, n)."""
    wave, place = torch.arange(n)[:, None], torch.arange(n)
    rows = torch.cos(torch.pi * wave * (2 * place + 1) / (2 * n)) * (2 / n) ** 0.5
    return torch.cat([rows[:1] / 2**0.5, rows[1:]])

"""Losses of a masked autoencoder: how far predicted patches are from the voxels that were hidden.

    reconstruction_error + weight · gradient_error

Voxels are compared in units of their own patch: minus its mean, over its standard deviation, so that a
faint texture counts as much as a membrane. The volume is read as it is stored. The plain formulas are
the reference; `em_kernels.patches` compares a prediction with the voxels where they lie.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from em_losses.entropy import wide
from em_losses.kernels import compiled

Int3 = tuple[int, int, int]
STORED = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32)


def reconstruction_error(
    prediction: Tensor,
    volume: Tensor,
    patch_vx: Int3,
    *,
    tokens: Tensor,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """Mean of (prediction − target)², the target being (voxel − mean) / √(variance + eps): ().

    Mean and variance, over D − 1, are those of each patch (He et al. 2022, Masked Autoencoders Are
    Scalable Vision Learners). Range [0, ∞); a prediction of 0 scores nearly 1.

    Args:
        prediction: (B, H, D).
        volume: (B, 1, Z, Y, X) as stored; it receives no gradient.
        patch_vx: voxels of a patch; D is their number.
        tokens: (B, H) int64, which patches are predicted, numbered with x fastest.
        scale: of stored values: `eps` is in units of stored · scale.

    >>> volume = torch.tensor([0.0, 2.0]).view(1, 1, 1, 1, 2)
    >>> token = torch.zeros(1, 1, dtype=torch.int64)
    >>> error = reconstruction_error(torch.zeros(1, 1, 2), volume, (1, 1, 2), tokens=token)
    >>> round(float(error), 4)
    0.5
    """
    fused = _fused(prediction, volume)
    if fused is None:
        settings = {"tokens": tokens, "scale": scale, "eps": eps}
        return plain_reconstruction_error(prediction, volume, patch_vx, **settings)  # type: ignore[arg-type]
    sums = fused.reconstruction_sums(
        prediction, volume, patch_vx, tokens=tokens, scale=scale, eps=eps
    )
    error: Tensor = sums.squared_error / sums.values
    return error


def plain_reconstruction_error(
    prediction: Tensor,
    volume: Tensor,
    patch_vx: Int3,
    *,
    tokens: Tensor,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """`reconstruction_error` in plain torch, the reference for the compiled operator."""
    prediction = wide(prediction)
    target = plain_patch_targets(volume, patch_vx, tokens=tokens, scale=scale, eps=eps)[0]
    _check(prediction, target)
    return (prediction - target.to(prediction.dtype)).square().mean()


def gradient_error(
    prediction: Tensor,
    volume: Tensor,
    patch_vx: Int3,
    *,
    tokens: Tensor,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """The same of differences between neighbouring voxels of a patch: what is sharp counts more.

    The mean over the three axes of the mean of (Δ prediction − Δ target)², with Δ along that axis; an
    axis along which a patch has one voxel is left out. Arguments as of `reconstruction_error`.
    """
    if max(patch_vx) < 2:
        raise ValueError(f"patches of {patch_vx} voxels have no neighbours to take differences of")
    prediction = wide(prediction)
    target = patch_targets(volume, patch_vx, tokens=tokens, scale=scale, eps=eps)[0]
    _check(prediction, target)
    error = (prediction - target.to(prediction.dtype)).unflatten(-1, patch_vx)  # (B, H, z, y, x)
    parts = [
        error.diff(dim=axis).square().mean()
        for axis, side in zip((-3, -2, -1), patch_vx, strict=True)
        if side > 1
    ]
    return torch.stack(parts).mean()


def patch_targets(
    volume: Tensor, patch_vx: Int3, *, tokens: Tensor, scale: float = 1.0, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised patches (B, H, D), and the means and variances (B, H) that they are normalised by."""
    fused = _fused(volume, volume)
    if fused is None:
        return plain_patch_targets(volume, patch_vx, tokens=tokens, scale=scale, eps=eps)
    target, mean, variance = fused.patch_targets(
        volume, patch_vx, tokens=tokens, scale=scale, eps=eps
    )
    return target, mean, variance


def plain_patch_targets(
    volume: Tensor, patch_vx: Int3, *, tokens: Tensor, scale: float = 1.0, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """`patch_targets` in plain torch, the reference for the compiled operator."""
    size = tuple(volume.shape[2:])
    if volume.dim() != 5 or volume.shape[1] != 1 or any(n % p for n, p in zip(size, patch_vx)):  # noqa: B905
        raise ValueError(
            f"volume has shape {tuple(volume.shape)}; wanted (B, 1, Z, Y, X) with sides that are "
            f"multiples of the patch {tuple(patch_vx)}"
        )
    (pz, py, px), (z, y, x) = patch_vx, (n // p for n, p in zip(size, patch_vx, strict=True))
    values = wide(volume.detach()) * scale
    split = values.reshape(-1, z, pz, y, py, x, px).permute(0, 1, 3, 5, 2, 4, 6)
    cut = split.reshape(-1, z * y * x, pz * py * px)  # (B, N, D)
    patches = cut.gather(1, tokens[..., None].expand(-1, -1, cut.shape[2]))
    mean = patches.mean(-1, keepdim=True)
    variance = patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt(), mean[..., 0], variance[..., 0]


def _fused(prediction: Tensor, volume: Tensor) -> ModuleType | None:
    if volume.dtype not in STORED or torch.float64 in (prediction.dtype, volume.dtype):
        return None
    return compiled("patches", prediction)


def _check(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}; wanted {tuple(target.shape)}: samples, "
            "tokens, voxels of a patch"
        )

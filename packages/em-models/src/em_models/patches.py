"""Patches of a volume as tokens, straight from the voxels as they are stored.

The plain formula here is the reference; `em_kernels.patches` cuts only the patches that are asked
for, and casts while it copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from em_models.kernels import compiled_patches

Int3 = tuple[int, int, int]
STORED = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def grid_of(size_vx: tuple[int, ...], patch_vx: Int3) -> Int3:
    """Patches along each axis; a size that they do not fill is refused.

    >>> grid_of((16, 64, 64), (2, 8, 8))
    (8, 8, 8)
    """
    if len(size_vx) != 3 or any(n < p or n % p for n, p in zip(size_vx, patch_vx, strict=True)):
        raise ValueError(
            f"volume of {tuple(size_vx)} voxels; wanted multiples of the patch {tuple(patch_vx)} "
            "along (z, y, x)"
        )
    z, y, x = (n // p for n, p in zip(size_vx, patch_vx, strict=True))
    return z, y, x


def patchify(volume: Tensor, patch_vx: Int3, *, tokens: Tensor | None = None) -> Tensor:
    """Patches of a volume as float, all of them or those that `tokens` names.

    Args:
        volume: (B, 1, Z, Y, X) of integers as stored, or of floats, whose type is kept.
        patch_vx: voxels of a patch, which is numbered with x fastest.
        tokens: (B, V) int64.

    Returns: (B, V, pz·py·px).

    >>> patchify(torch.arange(8.0).view(1, 1, 1, 2, 4), (1, 2, 2))[0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    if volume.dim() != 5 or volume.shape[1] != 1:
        raise ValueError(f"volume has shape {tuple(volume.shape)}; wanted (B, 1, Z, Y, X)")
    grid_of(tuple(volume.shape[2:]), patch_vx)
    fused = compiled_patches(volume) if volume.dtype in STORED else None
    if fused is not None:
        found: Tensor = fused.patchify(volume, patch_vx, tokens=tokens)
        return found
    return plain_patchify(volume, patch_vx, tokens=tokens)


def plain_patchify(volume: Tensor, patch_vx: Int3, *, tokens: Tensor | None = None) -> Tensor:
    """`patchify` in plain torch, the reference for the compiled operator."""
    values = volume if volume.is_floating_point() else volume.float()
    (z, y, x), (pz, py, px) = grid_of(tuple(volume.shape[2:]), patch_vx), patch_vx
    split = values.reshape(-1, z, pz, y, py, x, px)
    cut = split.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, z * y * x, pz * py * px)  # (B, N, D)
    if tokens is None:
        return cut
    return cut.gather(1, tokens[..., None].expand(-1, -1, cut.shape[2]))

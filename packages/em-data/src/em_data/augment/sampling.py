"""Coarser pixels, and back: what a scan with larger steps records of an image.

Pixel i of factor f covers voxels f·i to f·i + f − 1, so that its centre lies at f·i + (f − 1) / 2: half
a pixel from both edges, and nothing is shifted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def coarsen(images: Tensor, factor: int) -> Tensor:
    """Means of factor × factor voxels, of those that are there at the far edges: (N, Z, Y, X)."""
    return F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)


def refine(images: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Linear interpolation between the centres of pixels: (N, Z, y, x) -> (N, Z, *size).

    Beyond the outermost centres the outermost pixel goes on.
    """
    fine = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    return fine[..., : size[0], : size[1]]

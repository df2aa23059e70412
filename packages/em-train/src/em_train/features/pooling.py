"""Features with the means around them: what regional texture needs beside a single place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POOLED_CELLS = (1, 3, 7, 11)  # sides of the windows that `pooled` averages over


def pooled(features: Tensor, cells: tuple[int, ...] = POOLED_CELLS) -> Tensor:
    """Features with their means over windows around each place: (B, D, Y, X) -> (B, 4·D, Y, X)."""
    means = [F.avg_pool2d(features, k, 1, k // 2, count_include_pad=False) for k in cells]
    return torch.cat(means, 1)

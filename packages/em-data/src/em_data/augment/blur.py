"""Gaussian blur within slices, each with a deviation of its own.

Written as a sum over shifted copies, because convolutions round to 10 bits on devices that do so by
default, and a batch must not depend on the device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(slices: Tensor, sigma_vx: Tensor, most_vx: float) -> Tensor:
    """Blur every slice: (N, Y, X) with deviations (N,) of at most `most_vx`.

    Beyond the border nothing is assumed: the weights that lie inside are scaled to sum to 1.
    """
    radius = math.ceil(3 * most_vx)
    places = torch.arange(-radius, radius + 1, device=slices.device)
    weights = torch.exp(-0.5 * (places / sigma_vx.clamp(min=1e-3)[:, None]) ** 2)  # (N, K)
    for axis in (-1, -2):
        slices = _blur_rows(slices.transpose(axis, -1), weights).transpose(axis, -1)
    return slices


def _blur_rows(rows: Tensor, weights: Tensor) -> Tensor:  # (N, M, L), (N, K) -> (N, M, L)
    length, radius = rows.shape[-1], weights.shape[1] // 2
    padded = F.pad(rows, (radius, radius))
    inside = F.pad(rows.new_ones(1, 1, length), (radius, radius))
    total = torch.zeros_like(rows)
    share = rows.new_zeros(len(rows), 1, length)
    for k, weight in enumerate(weights.T[:, :, None, None]):
        total.addcmul_(padded[..., k : k + length], weight)
        share.addcmul_(inside[..., k : k + length], weight)
    return total.div_(share)

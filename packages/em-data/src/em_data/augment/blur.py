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
        slices = _blur_along(slices, weights, axis)
    return slices


def _blur_along(slices: Tensor, weights: Tensor, axis: int) -> Tensor:
    """(N, Y, X) with weights (N, K). Not transposed, because that takes twice as long."""
    length, radius = slices.shape[axis], weights.shape[1] // 2
    border = (radius, radius) if axis == -1 else (0, 0, radius, radius)
    padded = F.pad(slices, border)
    inside = F.pad(slices.new_ones(length), (radius, radius))
    total = torch.zeros_like(slices)
    share = slices.new_zeros(len(slices), length)
    for k, weight in enumerate(weights.T):
        total.addcmul_(padded.narrow(axis, k, length), weight[:, None, None])
        share.addcmul_(inside[k : k + length], weight[:, None])
    return total.div_(share[:, None] if axis == -1 else share[..., None])

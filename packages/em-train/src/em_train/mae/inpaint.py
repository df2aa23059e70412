"""Filling hidden voxels in without having learned anything: what a masked autoencoder must beat."""

from __future__ import annotations

import torch
from torch import Tensor


def inpaint(volume: Tensor, visible: Tensor) -> Tensor:
    """Trilinear: each hidden voxel is interpolated between the visible ones nearest along the axes.

    Along every axis there are two, one before and one after it, at most. They count by the inverse of
    their distance, so along a single axis this is linear interpolation; where none is left, the mean of
    all visible voxels.

    Args:
        volume: (B, Z, Y, X) float.
        visible: (B, Z, Y, X) bool; what it leaves out is not looked at.

    >>> line = torch.tensor([0.0, 99.0, 99.0, 3.0]).view(1, 1, 1, 4)
    >>> inpaint(line, torch.tensor([True, False, False, True]).view(1, 1, 1, 4)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    known = torch.where(visible, volume, 0)
    total, weight = torch.zeros_like(known), torch.zeros_like(known)
    for axis in (1, 2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = volume.shape[axis]
        place = torch.arange(volume.shape[axis], device=volume.device).view(shape)
        before = torch.where(visible, place, -1).cummax(axis).values
        reverse = torch.where(visible, -place, -volume.shape[axis]).flip(axis)
        after = -reverse.cummax(axis).values.flip(axis)
        for at in (before, after):
            there = (at >= 0) & (at < volume.shape[axis])
            inside = at.clamp(0, volume.shape[axis] - 1)
            closeness = there / (place - inside).abs().clamp(min=1)
            total += closeness * known.gather(axis, inside)
            weight += closeness
    mean = known.sum((1, 2, 3), keepdim=True) / visible.sum((1, 2, 3), keepdim=True).clamp(min=1)
    filled = torch.where(weight > 0, total / weight.clamp(min=1e-12), mean)
    return torch.where(visible, volume, filled)

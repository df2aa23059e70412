"""Noise of a microscope, a function of a few words per sample.

The numbers are made where the images are, by hashing the position of a voxel, because drawing them
on the CPU takes three times as long and sending them takes longer still.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def normal(words: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers: (B, 2) int32 -> (B, *shape) float32.

    A 32-bit hash (https://github.com/skeeto/hash-prospector) of half the positions, and two numbers
    of each by the transform of Box and Muller; no number lies beyond 4.9.
    """
    count = math.prod(shape)
    bits = torch.arange(-(-count // 2), dtype=torch.int32, device=words.device) ^ words[:, :1]
    bits = (bits ^ (bits >> 16 & 0xFFFF)).mul_(0x7FEB352D).add_(words[:, 1:])
    bits.bitwise_xor_(bits >> 15 & 0x1FFFF).mul_(0x846CA68B - 2**32)
    bits.bitwise_xor_(bits >> 16 & 0xFFFF)
    radius = (bits >> 16 & 0xFFFF).float().add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFF).float().mul_(2 * math.pi / 2**16)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return both[:, :count].view(len(words), *shape)


def add_gaussian(images: Tensor, deviation: Tensor, words: Tensor) -> Tensor:
    """Noise of an amplifier, the same everywhere: (B, …) with a deviation of (B,)."""
    each = deviation.view(-1, *[1] * (images.dim() - 1))
    return torch.addcmul(images, normal(words, images.shape[1:]), each)


def add_poisson(images: Tensor, electrons: Tensor, words: Tensor) -> Tensor:
    """Noise of counted electrons: (B, …) where a white voxel counts (B,) of them on average.

    The power 2/3 of Poisson counts is nearly normal (Anscombe 1953). Its inverse gives counts, though
    not whole ones, with the right mean, variance and skewness from a few electrons on.
    """
    each = electrons.view(-1, *[1] * (images.dim() - 1))
    counts = (images * each).clamp_(min=1e-3)
    root = counts.sqrt()
    power = counts.sub_(1 / 9).addcmul_(normal(words, images.shape[1:]), root, value=2 / 3)
    power.clamp_(min=0)
    return power.mul_(power.sqrt()).div_(root).div_(each)

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
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D).add_(words[:, 1:])
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    bits.bitwise_xor_(high := (bits >> 16).bitwise_and_(0xFFFF))
    radius = high.float().add_(0.5).mul_(2**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFF).float().mul_(2 * math.pi / 2**16)
    both = torch.stack([angle.cos(), angle.sin()], 1).mul_(radius[:, None]).flatten(1)
    return both[:, :count].view(len(words), *shape)


def each(values: Tensor, images: Tensor) -> Tensor:
    """One value for each image, in as many dimensions: (B,), (B, …) -> (B, 1, …)."""
    return values.view(-1, *[1] * (images.dim() - 1))


def add_gaussian(images: Tensor, deviation: Tensor, words: Tensor) -> Tensor:
    """Noise of an amplifier, the same everywhere: (B, …) with a deviation of (B,)."""
    return torch.addcmul(images, normal(words, images.shape[1:]), each(deviation, images))


def add_poisson(images: Tensor, electrons: Tensor, words: Tensor) -> Tensor:
    """Noise of counted electrons: (B, …) where a white voxel counts (B,) of them on average.

    The power 2/3 of Poisson counts is nearly normal (Anscombe 1953). Its inverse gives counts, though
    not whole ones, with the right mean, variance and skewness from a few electrons on.
    """
    white = each(electrons, images)
    counts = (images * white).clamp_(min=1e-3)
    root = counts.sqrt()
    power = counts.sub_(1 / 9).addcmul_(normal(words, images.shape[1:]), root, value=2 / 3)
    power.clamp_(min=0)
    return power.mul_(power.sqrt()).div_(root).div_(white)


def correlated(words: Tensor, shape: tuple[int, ...], length_vx: Tensor, most_vx: float) -> Tensor:
    """Normal numbers with the correlation exp(−distance / length) along x: (B, *shape).

    Each is the sum of normal numbers before it, with weights that decay; they are added up in rounds,
    each of which reaches twice as far as the one before.

    Args:
        words: (B, 2) int32.
        shape: of a sample, x last.
        length_vx: (B,) of at most `most_vx`; at 0 there is no correlation.
        most_vx: how far `length_vx` may go.
    """
    steps = [2**k for k in range(math.ceil(math.log2(max(1, 3 * most_vx))))]
    reach = sum(steps)
    total = normal(words, (*shape[:-1], shape[-1] + reach))
    decay = each(torch.exp(-1 / length_vx.clamp(min=1e-3)), total)
    for step in steps:
        total = torch.addcmul(total[..., step:], total[..., :-step], decay**step)
    square = decay * decay
    return total * ((1 - square) / (1 - square ** (reach + 1))).sqrt()


def add_scan(
    images: Tensor,
    offset: Tensor,
    deviation: Tensor,
    length_vx: Tensor,
    offset_words: Tensor,
    words: Tensor,
    *,
    most_vx: float,
) -> Tensor:
    """Noise of a scan, row by row: offsets of whole rows, and noise that is correlated along them.

    Args:
        images: (B, Z, Y, X).
        offset: (B,) deviation of the offsets.
        deviation: (B,) of the correlated noise.
        length_vx: (B,) over which it falls to 1/e, at most `most_vx`.
        offset_words: (B, 2) int32.
        words: (B, 2) int32.
        most_vx: how far `length_vx` may go.
    """
    rows = normal(offset_words, (*images.shape[1:3], 1)) * each(offset, images)
    noise = correlated(words, images.shape[1:], length_vx, most_vx)
    return torch.addcmul(images + rows, noise, each(deviation, images))

"""Random draws that depend on their key alone: the same on every rank, and after a resume."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from em_losses.entropy import flat


def generator(key: tuple[int, ...]) -> torch.Generator:
    """A generator on the CPU for a key such as (seed of the run, step)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw_places(pixels: int, count: int, *, key: tuple[int, ...]) -> Tensor:
    """Numbers of `count` different pixels of `pixels`, all of them where there are fewer: (M,).

    >>> draw_places(100, 3, key=(0, 7)).tolist() == draw_places(100, 3, key=(0, 7)).tolist()
    True
    """
    return torch.randperm(pixels, generator=generator(key))[:count]


def draw_directions(count: int, dimension: int, *, key: tuple[int, ...]) -> Tensor:
    """Directions spread evenly over the sphere: (count, dimension), each of unit length."""
    return F.normalize(torch.randn(count, dimension, generator=generator(key)), dim=1)


def pick(maps: Tensor, places: Tensor) -> Tensor:
    """The vectors at some pixels of maps: (B, D, *spatial), (M,) -> (M, D).

    Pixels are numbered sample by sample in the order of memory, from 0 to B · number of pixels. The
    same places of several maps belong together.
    """
    maps = flat(maps)  # (B, D, N)
    pixels = maps.shape[2]
    places = places.to(maps.device)
    return maps[places // pixels, :, places % pixels]

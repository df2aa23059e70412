"""Which tokens a masked autoencoder hides: random ones, columns along z, or blocks.

A mask depends on (seed, epoch, number of the sample) alone, so it is the same on any number of ranks
and after a resume. All masks of a batch hide the same number of tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from em_models.patches import Int3

Mask = Literal["random", "tube", "block"]


class Masks(NamedTuple):
    """Numbers of the tokens of each sample, ascending."""

    visible: Tensor  # (B, V) int64
    hidden: Tensor  # (B, H) int64

    def to(self, device: torch.device | str) -> Masks:
        """The same on `device`."""
        # Only CUDA keeps what it copies from until it has read it; MPS reads memory given back.
        ahead = torch.device(device).type == "cuda"
        return Masks(*(one.to(device, non_blocking=ahead) for one in self))


def count_hidden(grid: Int3, share: float, kind: Mask = "random") -> int:
    """How many tokens of a grid are hidden: at least one, and not all of them.

    >>> count_hidden((8, 8, 8), 0.75)
    384
    """
    unit = grid[0] if kind == "tube" else 1
    groups = math.prod(grid) // unit
    if groups < 2:
        raise ValueError(
            f"a grid of {grid} tokens has nothing to hide with masks of kind {kind!r}; take a "
            "larger crop, or smaller patches"
        )
    return min(max(round(share * groups), 1), groups - 1) * unit


def draw_masks(
    grid: Int3,
    keys: Sequence[tuple[int, int]],
    *,
    share: float = 0.75,
    kind: Mask = "random",
    block_tokens: Int3 = (2, 2, 2),
    seed: int = 0,
) -> Masks:
    """Masks of samples, on the CPU.

    Args:
        grid: tokens along (z, y, x).
        keys: (epoch, number) of each sample.
        share: of the tokens that are hidden.
        kind: random hides single tokens, tube hides all tokens above each other along z, block hides
            boxes of `block_tokens` on a lattice that begins somewhere else for every sample.
        seed: of the run.

    >>> masks = draw_masks((2, 4, 4), [(0, 5)])
    >>> masks.visible.shape, masks.hidden.shape
    (torch.Size([1, 8]), torch.Size([1, 24]))
    """
    if not 0 < share < 1 or min(block_tokens) < 1:
        raise ValueError(
            f"share is {share:g}, block_tokens {block_tokens}; wanted 0 < share < 1 and at least one "
            "token along each axis"
        )
    tokens, hidden = math.prod(grid), count_hidden(grid, share, kind)
    orders = []
    for key in keys:
        generator = _generator(seed, *key)
        groups = _groups(grid, kind, block_tokens, generator)  # (N,)
        # Whole groups in random order, the tokens of the last one in random order too.
        first = torch.randperm(int(groups.max()) + 1, generator=generator)[groups]
        orders.append((first * tokens + torch.randperm(tokens, generator=generator)).argsort())
    order = torch.stack(orders)  # (B, N)
    return Masks(order[:, hidden:].sort(1).values, order[:, :hidden].sort(1).values)


def _generator(*key: int) -> torch.Generator:
    digest = hashlib.blake2b(repr(("mask", *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _groups(grid: Int3, kind: Mask, block_tokens: Int3, generator: torch.Generator) -> Tensor:
    """The number of the group that each token is hidden with: (N,)."""
    if kind == "random":
        return torch.arange(math.prod(grid))
    if kind == "tube":
        return torch.arange(grid[1] * grid[2]).repeat(grid[0])
    number = torch.zeros(grid, dtype=torch.int64)
    for axis, (n, side) in enumerate(zip(grid, block_tokens, strict=True)):
        shift = int(torch.randint(side, (1,), generator=generator))
        along = (torch.arange(n) + shift) // side
        shape = [1, 1, 1]
        shape[axis] = n
        number = number * (int(along[-1]) + 1) + along.view(shape)
    return number.flatten()

"""What the networks of dense-ssl get to see of a stack: its neighbours, and its target twice.

The whole stack is turned and mirrored at random, and each view of the target once more by itself, so
that no code can say which way up a pixel lies. Every slice changes its contrast by itself, so that no
code is a mere grey value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from em_data import Stream, augment
from em_data.loader import Batch
from torch import Tensor


class Views(NamedTuple):
    """Images of a batch, all S pixels wide."""

    context: Tensor  # (B, N, S, S) neighbours of the target
    targets: Tensor  # (B, V, S, S) the target, each view turned by itself
    turns: list[list[int]]  # the symmetry of each sample, for every view
    clean: Tensor  # (B, 1, S + 2·rim, …) the target as it is, lying as the context does

    def back(self, maps: Tensor) -> Tensor:
        """Maps of the targets, turned back to lie on the context: (B, V, C, Y, X) -> same."""
        views = zip(maps.unbind(1), self.turns, strict=True)
        return torch.stack([augment.transform_back(view, turn) for view, turn in views], 1)


def look(
    batch: Batch,
    *,
    middle: int,
    count: int,
    rim: int,
    seed: int,
    photometry: float,
    turn: bool,
    shuffle: bool,
) -> Views:
    """Views of a batch, each sample reproducible by its key.

    Args:
        batch: stacks with a rim that only `clean` shows.
        middle: which slice of a stack is the target.
        count: V, how many times the target is seen.
        rim: pixels at each border of the batch that the networks do not see.
        photometry: strength of the changes of contrast, brightness and gamma.
        turn: turn the first view of the target by itself; later ones always are.
        shuffle: give every target the neighbours of the sample before it.
    """
    image, keys = batch.image(), batch.keys  # (B, Z, S + 2·rim, S + 2·rim)
    device, z = image.device, image.shape[1]

    def turns(stream: Stream, numbers: int) -> list[list[int]]:
        drawn = augment.draw(seed, stream, keys, (numbers,), "cpu")
        return [augment.symmetries(column) for column in drawn.unbind(1)]

    image = augment.transform(image, turns(Stream.SYMMETRY, 1)[0])
    clean = image[:, middle : middle + 1]
    rows = slice(rim, image.shape[-1] - rim)
    seen = image[..., rows, rows]  # (B, Z, S, S)
    target = seen[:, middle : middle + 1].expand(-1, count, -1, -1)
    context = torch.cat([seen[:, :middle], seen[:, middle + 1 :]], 1)
    if shuffle:
        context = context.roll(1, 0)
    changes = augment.draw(seed, Stream.PHOTOMETRY, keys, (z - 1 + count, 3), device)
    seen = augment.photometry(torch.cat([context, target], 1), changes, photometry)
    turned = turns(Stream.TARGET_SYMMETRY, count)
    turned = turned if turn else [[0] * len(keys), *turned[1:]]
    views = zip(seen[:, z - 1 :].unbind(1), turned, strict=True)
    targets = torch.stack([augment.transform(view, turn) for view, turn in views], 1)
    return Views(seen[:, : z - 1], targets, turned, clean)


def clean_targets(batch: Batch, *, middle: int, rim: int) -> Tensor:
    """The targets of a batch as they are, as large as the networks see them: (B, 1, S, S)."""
    rows = slice(rim, batch.raw.shape[-1] - rim)
    return batch.image()[:, middle : middle + 1, rows, rows]

"""Counter-based random numbers: what a sample draws depends on its key alone.

So any number of threads or ranks draws the same samples, and resuming needs no state beyond the step.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

# Philox(key=…, counter=…) draws a seed from the system and throws it away, which takes ten times as
# long as all the rest. Given any seed and then its state, it does not.
_UNUSED = np.random.SeedSequence(0)


_EMPTY = np.zeros(4, np.uint64)


class Stream(IntEnum):
    """Independent streams of random numbers: what a number is used for."""

    PLACE = 0
    SYMMETRY = 1
    TARGET_SYMMETRY = 2
    PHOTOMETRY = 3
    BLOCK = 4
    ORDER = 5
    WARP = 6
    ELASTIC = 7
    SHIFT = 8
    DEFECT = 9
    EFFECT = 10
    NOISE = 11
    SPREAD = 12
    DEGRADE = 13
    COPY = 14
    BLIND = 15
    NEIGHBOUR = 16
    VERDICT = 17


class Key(NamedTuple):
    """Which sample of which epoch: with the seed and a stream, all that randomness depends on."""

    epoch: int
    number: int


def random_at(
    seed: int, stream: int, key: tuple[int, int], attempt: int = 0
) -> np.random.Generator:
    """The generator of one sample (or block) and one purpose.

    Seed and stream are separate key words, the two parts of the key are the high counter words and
    the attempt, where a draw is repeated, the next one: no two uses share numbers, not even under
    neighbouring seeds.

    >>> random_at(0, Stream.PLACE, Key(0, 5)).integers(100).item()
    13
    """
    philox = np.random.Philox(_UNUSED)
    philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([0, attempt, key[1], key[0]], np.uint64),
            "key": np.array([seed, stream], np.uint64),
        },
        "buffer": _EMPTY,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    return np.random.Generator(philox)

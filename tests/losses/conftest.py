"""What the tests of several losses share: two ranks in one process."""

import pytest


@pytest.fixture
def two_ranks():
    """A function that computes a loss of a batch that is split over two ranks.

    Each half is run once to see the sums that it hands to `reduce`; then the first rank is run again
    and gets the sums of both.
    """

    def compute(loss, *batch):
        halves = list(zip(*(tensor.split([3, len(tensor) - 3]) for tensor in batch), strict=True))
        seen = [[], []]
        for half, kept in zip(halves, seen, strict=True):
            loss(*half, reduce=lambda sums, kept=kept: kept.append(sums) or sums)
        assert seen[0], "the loss never asked for a sum over ranks"
        both = iter([a + b for a, b in zip(*seen, strict=True)])
        return loss(*halves[0], reduce=lambda sums: next(both))

    return compute

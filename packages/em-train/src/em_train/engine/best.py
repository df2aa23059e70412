"""The best value of a measure so far: which checkpoint to keep, and when to stop early."""

from __future__ import annotations

import math
from typing import Any


class Best:
    """Remembers the best value, and how many measurements ago it was.

    >>> best = Best(higher=True, stale_after=2)
    >>> [best.improves(value) for value in (0.5, 0.7, 0.6, 0.7)], best.stale
    ([True, True, False, False], True)
    """

    def __init__(self, *, higher: bool, stale_after: int = 0) -> None:
        self.value = -math.inf if higher else math.inf
        self.since = 0
        self._higher, self._stale_after = higher, stale_after

    def improves(self, value: float) -> bool:
        """Take in one measurement; True when it is the best. What is not finite never is."""
        better = value > self.value if self._higher else value < self.value
        if better and math.isfinite(value):
            self.value, self.since = value, 0
            return True
        self.since += 1
        return False

    @property
    def stale(self) -> bool:
        """Whether nothing has improved for `stale_after` measurements; never with 0."""
        return 0 < self._stale_after <= self.since

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"value": self.value, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.value, self.since = state["value"], state["since"]

"""The features of a run, whichever recipe it is of."""

from __future__ import annotations

from pathlib import Path

from em_train.catalogue import module_for
from em_train.features.frozen import FrozenRun


def open_run(run: Path) -> FrozenRun:
    """A finished run as a source of features."""
    found: FrozenRun = module_for(run, "features").open_run(run)
    return found

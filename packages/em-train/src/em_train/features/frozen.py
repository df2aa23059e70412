"""What a finished run offers to whoever reads its features, whichever recipe it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from em_data import Volume
from em_data.geometry import Int3
from torch import Tensor

from em_train.features.slab import Slab


class FrozenRun(Protocol):
    """A run whose weights change no more, at the scale that it was trained on."""

    @property
    def patch_vx(self) -> Int3 | None:
        """Size of the patches that it has features of; None where any size will do."""

    @property
    def layered(self) -> bool:
        """Whether there are several layers to read; otherwise the last one is all there is."""

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run."""

    def maps(self, slab: Slab, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Features of the patches of a slab: a map (D, z, y, x) for each layer."""

    def untrained(self, seed: int) -> FrozenRun:
        """Its twin with weights that have seen nothing."""

    def knows_where(self, volume: Volume, layer: int, seed: int) -> float:
        """R² of the place in the crop, read from the features of one place."""

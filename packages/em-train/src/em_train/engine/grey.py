"""The grey values that a run learned from, kept in its folder, and those that others are read with.

Every crop of a volume measures other ends than the whole, by a value or two, and then the same voxels
get other classes here and there. So a volume that is like those of the run is read with the run's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from em_data import GreyRange, Volume, grey_range

from em_train.engine.atomic import replacing
from em_train.engine.errors import StoredFileError
from em_train.engine.stored import read_json

FILE = "grey.json"
WITHIN = 0.1  # of the run's range: so far off may the ends of a volume be that is read with it


class Grey(NamedTuple):
    """The values that become 0 and 1, and why these."""

    range: GreyRange
    reason: str

    @property
    def ends(self) -> tuple[float, float]:
        """The two values, for files."""
        return self.range.low, self.range.high

    def __str__(self) -> str:
        return f"{_text(self.range)}, {self.reason}"


def keep(run: Path, ranges: Sequence[GreyRange]) -> None:
    """Write the ranges of the volumes of a run into its folder, in their order."""
    with replacing(run / FILE) as temporary:
        temporary.write_text(json.dumps([[one.low, one.high] for one in ranges]) + "\n")


def kept(run: Path) -> list[GreyRange]:
    """The ranges that a run keeps; none for runs that were trained before they did."""
    path, remedy = run / FILE, "put it back, or remove it and give --grey volume"
    if not path.exists():
        return []
    stored = read_json(path, list[tuple[float, float]], remedy)
    try:
        return [_checked(low, high) for low, high in stored]
    except ValueError as error:
        raise StoredFileError(f"{path} is damaged: {error}; {remedy}") from None


def choose(run: Path, volume: Volume, asked: str = "auto") -> Grey:
    """The range that a volume is read with.

    Args:
        run: folder of the run.
        volume: at the scale of the run.
        asked: `run`: of the ranges that the run keeps the one nearest to the volume's own. `volume`:
            the volume's own. `auto`: the run's where both ends of the volume's own lie within a tenth
            of it, else the volume's. Or two numbers, `LOW,HIGH`.
    """
    if asked not in ("auto", "run", "volume"):
        return Grey(_parsed(asked), "as given")
    own = grey_range(volume)
    stored = [] if asked == "volume" else kept(run)
    if not stored:
        if asked == "run":
            raise ValueError(
                f"{run} keeps no grey range ({FILE}); take --grey volume, or give the values: LOW,HIGH"
            )
        return Grey(own, "the volume's own" + ("; the run keeps none" if asked == "auto" else ""))
    nearest = min(stored, key=lambda one: _apart(own, one))
    if asked == "auto" and _apart(own, nearest) > WITHIN:
        return Grey(own, f"the volume's own; the run's, {_text(nearest)}, are too far from them")
    return Grey(nearest, f"as in the run; the volume's own are {_text(own)}")


def _parsed(asked: str) -> GreyRange:
    try:
        low, high = asked.split(",")
        return _checked(float(low), float(high))
    except ValueError:
        raise ValueError(
            f"--grey is {asked!r}; wanted auto, run, volume, or two numbers LOW,HIGH such as 7,228"
        ) from None


def _checked(low: float, high: float) -> GreyRange:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{low} to {high} is no range")
    return GreyRange(float(low), float(high))


def _apart(one: GreyRange, other: GreyRange) -> float:
    """How far apart the ends are, as a share of the other range."""
    return max(abs(one.low - other.low), abs(one.high - other.high)) * other.scale


def _text(one: GreyRange) -> str:
    return f"{one.low:.4g} to {one.high:.4g}"

"""A door: something odd that a person may hand to a command, made anew in a folder when it is tried.

Four kinds, by what a command that reads it must do.

shut    nobody can use it: refused by whoever opens it
rotten  its description is right and its voxels are not: refused by whoever learns or predicts from it
fine    odd only to look at: works
odd     refused in good order or works, as the product likes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["shut", "rotten", "fine", "odd"]
Make = Callable[[Path], str]


@dataclass(frozen=True)
class Door:
    """What is handed over, and how to make it."""

    name: str
    group: str
    kind: Kind
    make: Make
    """Writes it into an empty folder; gives the address that commands take."""
    remote: bool = False
    """Whether a network is asked, which takes seconds."""


def table(group: str, rows: dict[str, tuple[Kind, Make]]) -> list[Door]:
    """Doors of one group."""
    return [Door(f"{group}-{name}", group, kind, make) for name, (kind, make) in rows.items()]

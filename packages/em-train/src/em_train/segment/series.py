"""Label efficiency: the same training on 1, 2, 4, 8 labelled slices, and the scores side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from em_train.engine.atomic import replacing
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import check_config, stored_config

Train = Callable[[Path, Sequence[Layer], bool], None]  # run folder, keys, go on with what is there


def slice_counts(text: str | None) -> list[int]:
    """The numbers of `--slices`.

    >>> slice_counts("1,2,4")
    [1, 2, 4]
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(
            f"--slices is {text!r}; wanted different numbers from 1 on, such as 1,2,4,8"
        )
    return [int(part) for part in parts]


def begun_with(
    path: Path, counts: Sequence[int], cls: type[Any], layers: Sequence[Layer]
) -> list[Layer]:
    """The configuration that runs of a series were started with; empty where none was.

    With the layers on top it must be that of all of them, or scores of different settings would be
    compared.
    """
    begun = [count for count in counts if (path / f"slices-{count}" / "config.json").exists()]
    stored = [stored_config(path / f"slices-{count}", "segment") for count in begun[:1]]
    for count in begun:
        wanted = resolve(cls, [*stored, *layers, sliced(count)])
        check_config(path / f"slices-{count}", wanted, "segment", fixed=["run.init"])
    return stored


def sliced(count: int) -> Layer:
    """What a run of a series has of its own."""
    return Layer("--slices", {"data": {"slices": count}})


def run_series(path: Path, counts: Sequence[int], train: Train, *, resume: bool) -> None:
    """A run for each number of slices, in `path/slices-N`; `path/series.json` compares them."""
    if path.exists() and any(path.iterdir()) and not resume:
        raise FileExistsError(
            f"{path} is not empty; choose another --out, or go on with its runs with --resume"
        )
    for count in counts:
        folder = path / f"slices-{count}"
        if not (folder / "scores.json").exists():
            train(folder, [sliced(count)], resume and (folder / "config.json").exists())
    rows = [row for count in counts for row in read_scores(path / f"slices-{count}", count)]
    with replacing(path / "series.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("slices", "class", "Dice", "95 %", "IoU", "AP"):
        table.add_column(head, justify="left" if head == "class" else "right")
    for row in rows:
        low, high = row["dice_interval"]
        numbers = (row["iou"], row["average_precision"])
        table.add_row(
            str(row["slices"]),
            row["class"],
            f"{row['dice']:.3f}",
            f"{low:.3f} to {high:.3f}",
            *(f"{number:.3f}" for number in numbers),
        )
    Console(soft_wrap=True).print(table)


def read_scores(folder: Path, count: int) -> list[dict[str, Any]]:
    """What a run reached, a row per class."""
    found = json.loads((folder / "scores.json").read_text())["classes"]
    return [{"slices": count} | {k: v for k, v in one.items() if k != "slices"} for one in found]

"""What `emtrain restore` takes beside the options of every recipe: the task, and where the truth is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from em_train.catalogue import Entry
from em_train.commands.options import absolute
from em_train.commands.start import Given, start


def train(
    entry: Entry,
    given: Given,
    *,
    task: Annotated[
        Literal["pretrain", "denoise", "super-resolution", "background"] | None,
        typer.Option(
            "--task",
            help="What is repaired. pretrain: everything that a microscope does to images.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="VOLUME",
            help="What a volume should look like, aligned with it; once for each --data. Without it, "
            "damaged copies of the volumes are made.",
        ),
    ] = None,
    learn_from: Annotated[
        Literal["copies", "noise", "neighbours"] | None,
        typer.Option(
            "--learn-from",
            help="copies: damaged ones are made. noise: the noisy volume alone, by blind spots. "
            "neighbours: the slice above or below has other noise.",
        ),
    ] = None,
    modality: Annotated[
        Literal["fib-sem", "ss-tem", "sem-particles", "stem-lattice", "published"] | None,
        typer.Option("--modality", help="Microscopy whose damage is copied. Default: ss-tem."),
    ] = None,
    factor: Annotated[
        int | None,
        typer.Option(
            "--factor", metavar="2|4", help="Pixels of super-resolution for one that is given."
        ),
    ] = None,
) -> None:
    """Train with what was typed."""
    from em_train.engine.config import Layer

    data: dict[str, Any] = {
        name: value
        for name, value in (
            *(("task", task), ("learn_from", learn_from)),
            *(("modality", modality), ("factor", factor)),
        )
        if value is not None
    }
    if given.data:
        data["volumes"] = [*map(absolute, given.data)]
    if target:
        data |= {"target": [*map(absolute, target)], "learn_from": "target"}
        if learn_from:
            raise ValueError(f"--learn-from {learn_from} and --target are two ways; give one")
    if learn_from in ("noise", "neighbours") and task is None:
        data["task"] = "denoise"
    start(entry, given, [*given.layers(entry.command), Layer("options", {"data": data})])

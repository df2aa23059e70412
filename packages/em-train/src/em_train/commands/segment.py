"""What `emtrain segment` takes beside the options of every recipe: labels, held-out slices, series."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_train.catalogue import Entry
from em_train.commands.options import LABELS, absolute, absolute_labels, parse_range
from em_train.commands.start import Given, start

if TYPE_CHECKING:
    from em_train.engine.config import Layer


def train(
    entry: Entry,
    given: Given,
    *,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="LABELS",
            help=f"{LABELS} Once for each class, and for each volume in the same order.",
        ),
    ] = None,
    val_z: Annotated[
        str | None,
        typer.Option(
            "--val-z", metavar="A:B", help="Held-out slices A to B − 1. Default: the last 20 %."
        ),
    ] = None,
    val_images: Annotated[
        str | None,
        typer.Option(
            "--val-images",
            metavar="SHARE|N|A:B",
            help="Held-out images of a collection, evenly spread, or A to B − 1. Default: 0.2.",
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]",
            help="Train on N labelled slices or images only; several: a run for each, compared.",
        ),
    ] = None,
) -> None:
    """Train once, or once for every number of slices."""
    from em_train.engine import config as configuration
    from em_train.engine.config import Layer
    from em_train.segment.networks import check_start, guide_of, network_of
    from em_train.segment.series import begun_with, run_series, slice_counts

    layers = given.layers(entry.command)
    data: dict[str, Any] = {}
    if given.data:
        data["volumes"] = [*map(absolute, given.data)]
    if labels:
        beside = data["volumes"] if given.data else known_volumes(entry, given, layers)
        data["labels"] = absolute_labels(labels, beside)
    if val_z:
        held = {"split": {"z": parse_range("--val-z", val_z)}}
        layers.append(Layer("--val-z", {"data": held}))
    if val_images:
        data["held_images"] = parse_held(val_images)
    counts = slice_counts(slices)
    if len(counts) == 1:
        data["slices"] = counts[0]
    layers.append(Layer("options", {"data": data}))
    config: Any = entry.load().Config

    def run(
        path: Path | None, more: Sequence[Layer], go_on: bool, again: str | None = None
    ) -> None:
        own = [*layers, *more]
        if given.init and not go_on:
            own.insert(0, Layer("--init", network_of(given.init)))
            resolved = configuration.resolve(config, own)
            check_start(resolved.model, Path(given.init))
            own.append(Layer("--init", guide_of(given.init, resolved.data)))
        start(entry, replace(given, out=path, resume=go_on), own, again=again)

    if len(counts) < 2 or given.show_config:
        run(given.out, (), given.resume)
        return
    if given.gpus or given.processes or given.slurm:
        raise ValueError(
            "--slices with several numbers runs in this process; leave --gpus and the like out"
        )
    path = given.out or Path("runs") / f"segment-{time.strftime('%Y%m%d-%H%M%S')}"
    if given.resume:
        init = {"run": {"init": absolute(given.init)}} if given.init else {}
        layers[:0] = begun_with(path, counts, config, [*layers, Layer("--init", init)])
    # The runs that have not begun need all that was typed.
    typed = [one for one in sys.argv[1:] if one != "--resume"]
    typed += [*(() if given.out else ("--out", str(path))), "--resume"]
    again = shlex.join(["emtrain", *typed])
    run_series(path, counts, partial(run, again=again), resume=given.resume)


def parse_held(text: str) -> float | tuple[int, int] | None:
    """The held-out images of a collection: a share, a number or a range."""
    if ":" in text:
        return parse_range("--val-images", text)
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--val-images is {text!r}; wanted a share such as 0.2, a number of images, or a range such "
            "as 100:120"
        ) from None


def known_volumes(entry: Entry, given: Given, layers: Sequence[Layer]) -> Sequence[str]:
    """The volumes of a run that was given none: those of its configuration, or of its folder."""
    from em_train.engine.config import resolve
    from em_train.engine.run_folder import stored_config

    begun: list[Layer] = []
    if given.resume and given.out and (given.out / "config.json").exists():
        begun.append(stored_config(given.out, entry.command))
    config: Any = resolve(entry.load().Config, [*begun, *layers])
    volumes: Sequence[str] = config.data.volumes
    return volumes

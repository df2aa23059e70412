"""Commands that learn: dense-ssl, segment, mae."""

from __future__ import annotations

import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from em_train.commands.options import (
    ConfigFile,
    Debug,
    Gpus,
    Init,
    Processes,
    Resume,
    Sbatch,
    Set,
    ShowConfig,
    Slurm,
    absolute,
    absolute_labels,
    app,
    layers_of,
    parse_range,
    print_config,
)
from em_train.engine import worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from em_train.engine.config import Layer

PANEL = "Learn"


@app.command("dense-ssl", rich_help_panel=PANEL)
def dense_ssl(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="VOLUME",
            help="Raw volume: OME-Zarr, zarr, .npy, or synthetic: (the default). May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/dense-ssl-TIME."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from a preset: default, demo, exp1, …")
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Init = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn classes of content for every pixel, without labels.

    An encoder gives every pixel one of K classes, a predictor guesses the classes of a slice from
    its neighbours. The run folder holds pictures, weights, metrics and `report.html`.

    For instance: `emtrain dense-ssl --data raw.zarr --out runs/first --set optim.steps=2000`
    """
    from em_train.engine.config import Layer
    from em_train.recipes import dense_ssl as recipe

    layers = layers_of("dense-ssl", preset, config, set_)
    if data:
        layers.append(Layer("--data", {"data": {"volumes": [*map(absolute, data)]}}))
    start(
        recipe,
        "dense-ssl",
        layers,
        out=out,
        resume=resume,
        init=init,
        places=(gpus, processes),
        slurm=(slurm, sbatch or ()),
        show_config=show_config,
    )


@app.command(rich_help_panel=PANEL)
def segment(
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="VOLUME", help="Raw volume. May be repeated."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="NAME=LABELS[@VALUE]",
            help="A class: where a label volume is not 0, or has a value. LABELS may name a label "
            "image beside the volume. Once for each class, and for each volume in the same order.",
        ),
    ] = None,
    val_z: Annotated[
        str | None,
        typer.Option(
            "--val-z", metavar="A:B", help="Held-out slices A to B − 1. Default: the last 20 %."
        ),
    ] = None,
    slices: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N…]",
            help="Train on N labelled slices only; several: a run for each, compared.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/segment-TIME."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Start from a preset: default, demo, quick, fib-sem, ss-tem."
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Start from the weights of a segment run, or let the encoder of a dense-ssl run guide.",
        ),
    ] = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn to label every pixel, from a few labelled slices.

    The run folder holds the weights that did best on the held-out slices, thresholds, scores with
    intervals, pictures of the best and the worst, and `report.html`.

    For instance: `emtrain segment --data raw.zarr --labels mitochondria=mito.zarr --val-z 880:900`
    """
    from em_train.engine import config as configuration
    from em_train.engine.config import Layer
    from em_train.recipes import segment as recipe
    from em_train.segment.networks import guide_of
    from em_train.segment.series import begun_with, run_series, slice_counts

    layers = layers_of("segment", preset, config, set_)
    given: dict[str, Any] = {}
    if data:
        given["volumes"] = [*map(absolute, data)]
    if labels:
        given["labels"] = [*map(absolute_labels, labels)]
    if val_z:
        given["split"] = {"z": parse_range("--val-z", val_z)}
    counts = slice_counts(slices)
    if len(counts) == 1:
        given["slices"] = counts[0]
    layers.append(Layer("options", {"data": given}))

    def train(
        path: Path | None, more: Sequence[Layer], go_on: bool, again: str | None = None
    ) -> None:
        own = [*layers, *more]
        if init and not go_on:
            resolved = configuration.resolve(recipe.Config, own)
            own.append(Layer("--init", guide_of(init, resolved.data)))
        start(
            recipe,
            "segment",
            own,
            out=path,
            resume=go_on,
            init=init,
            places=(gpus, processes),
            slurm=(slurm, sbatch or ()),
            show_config=show_config,
            again=again,
        )

    if len(counts) < 2 or show_config:
        train(out, (), resume)
        return
    if gpus or processes or slurm:
        raise ValueError(
            "--slices with several numbers runs in this process; leave --gpus and the like out"
        )
    path = out or Path("runs") / f"segment-{time.strftime('%Y%m%d-%H%M%S')}"
    if resume:
        own = [Layer("--init", {"run": {"init": absolute(init)}})] if init else []
        layers[:0] = begun_with(path, counts, recipe.Config, [*layers, *own])
    # The runs that have not begun need all that was typed.
    typed = [one for one in sys.argv[1:] if one != "--resume"]
    typed += [*(() if out else ("--out", str(path))), "--resume"]
    run_series(path, counts, partial(train, again=shlex.join(["emtrain", *typed])), resume=resume)


@app.command(rich_help_panel=PANEL)
def mae(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="VOLUME",
            help="Raw volume: OME-Zarr, precomputed://…, or synthetic: (the default). May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/mae-TIME."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Start from a preset: default, demo, laptop, ss-tem, small, base, large.",
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    init: Init = None,
    gpus: Gpus = None,
    processes: Processes = None,
    slurm: Slurm = None,
    sbatch: Sbatch = None,
    show_config: ShowConfig = False,
    debug: Debug = False,
) -> None:
    """Learn the structure of volumes by filling in what was hidden: a masked autoencoder.

    The run folder holds the encoder, pictures of what was hidden, filled in and true, the error on
    held-out cubes beside that of in-painting, and `report.html`.

    For instance: `emtrain mae --data raw.zarr --preset laptop`
    """
    from em_train.engine.config import Layer
    from em_train.recipes import mae as recipe

    layers = layers_of("mae", preset, config, set_)
    if data:
        layers.append(Layer("--data", {"data": {"volumes": [*map(absolute, data)]}}))
    start(
        recipe,
        "mae",
        layers,
        out=out,
        resume=resume,
        init=init,
        places=(gpus, processes),
        slurm=(slurm, sbatch or ()),
        show_config=show_config,
    )


def start(
    recipe: ModuleType,
    command: str,
    layers: list[Layer],
    *,
    out: Path | None,
    resume: bool,
    init: str | None,
    places: tuple[str | None, int | None],
    slurm: tuple[str | None, Sequence[str]],
    show_config: bool,
    again: str | None = None,
) -> None:
    """What the command of every recipe does: resolve the configuration, then run, launch or submit."""
    from em_train.engine import config as configuration
    from em_train.engine import launch
    from em_train.engine.config import Layer
    from em_train.engine.run_folder import check_own, stored_config

    where = launch.Places(gpus=places[0], processes=places[1])
    if resume:
        if out is None:
            raise ValueError("--resume needs the run folder: give it with --out")
        layers = [stored_config(out, command), *layers]
        check_own(out, layers)
    if init:
        layers.append(Layer("--init", {"run": {"init": absolute(init)}}))
    if where.device():
        layers.append(Layer("--gpus or --processes", {"run": {"device": where.device()}}))
    resolved = configuration.resolve(recipe.Config, layers)
    if show_config:
        print_config(resolved)
        return
    if worker.is_worker() and out is None:
        raise ValueError("several processes need the same run folder: give it with --out")
    path = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if slurm[0]:
        script = launch.slurm_script(path.absolute(), where, slurm[1])
        if slurm[0] == "submit":
            path.parent.mkdir(parents=True, exist_ok=True)  # where Slurm writes the log
            script = launch.submit(script)
        typer.echo(script)
        return
    code = launch.train(recipe, command, resolved, path, resume=resume, places=where, again=again)
    if code:
        raise typer.Exit(code)

"""The options that every recipe has, and what happens with them: run, launch or submit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from em_train.catalogue import Entry
from em_train.commands.options import (
    ConfigFile,
    Debug,
    Set,
    ShowConfig,
    absolute,
    layers_of,
    print_config,
)
from em_train.engine import worker

if TYPE_CHECKING:
    from em_train.engine.config import Layer


@dataclass(frozen=True, kw_only=True)
class Given:
    """The options of every recipe, as they were typed."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="VOLUME",
            help="Raw volume: OME-Zarr, zarr, HDF5, TIFF, .npy, a server, or synthetic:. May be "
            "repeated. For segment also images:FOLDER, a collection of images.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN"),
    ] = None
    preset: Annotated[str | None, typer.Option(metavar="NAME")] = None
    config: ConfigFile = None
    set_: Set = None
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, with its configuration."),
    ] = False
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="RUN",
            help="Start from the weights of another run. Segment takes those of dense-ssl and restore "
            "too.",
        ),
    ] = None
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="N|auto",
            help="Start a process per GPU, again when one dies. 0: the CPU. Default: this process.",
        ),
    ] = None
    processes: Annotated[
        int | None,
        typer.Option("--processes", metavar="N", help="Start N processes on the CPU instead."),
    ] = None
    slurm: Annotated[
        Literal["print", "submit"] | None,
        typer.Option("--slurm", help="Print or submit an sbatch script instead of running here."),
    ] = None
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch",
            metavar="OPTION",
            help="Option of sbatch for --slurm, e.g. --nodes=2. May be repeated.",
        ),
    ] = None
    show_config: ShowConfig = False
    debug: Debug = False

    def layers(self, command: str) -> list[Layer]:
        """The configuration that was typed, weakest first; without volumes and `--init`."""
        return layers_of(command, self.preset, self.config, self.set_)


def start(entry: Entry, given: Given, layers: Sequence[Layer], *, again: str | None = None) -> None:
    """Resolve the configuration, then run, launch or submit.

    `again` is the command that goes on with it, where that is more than this run.
    """
    from em_train.engine import config as configuration
    from em_train.engine import launch
    from em_train.engine.config import Layer
    from em_train.engine.run_folder import check_own, stored_config

    recipe, layers = entry.load(), [*layers]
    where = launch.Workers(gpus=given.gpus, processes=given.processes)
    if given.resume:
        if given.out is None:
            raise ValueError("--resume needs the run folder: give it with --out")
        layers.insert(0, stored_config(given.out, entry.command))
        check_own(given.out, layers)
    if given.init is not None and not given.init.strip():
        raise ValueError("--init is empty; name the folder of a run, or leave it out")
    if given.init:
        layers.append(Layer("--init", {"run": {"init": absolute(given.init)}}))
    if where.device():
        layers.append(Layer("--gpus or --processes", {"run": {"device": where.device()}}))
    resolved = configuration.resolve(recipe.Config, layers)
    if given.show_config:
        print_config(resolved)
        return
    if worker.is_worker() and given.out is None:
        raise ValueError("several processes need the same run folder: give it with --out")
    path = given.out or Path("runs") / f"{entry.command}-{time.strftime('%Y%m%d-%H%M%S')}"
    if given.slurm:
        script = launch.slurm_script(path.absolute(), where, given.sbatch or ())
        if given.slurm == "submit":
            path.parent.mkdir(parents=True, exist_ok=True)  # where Slurm writes the log
            script = launch.submit(script)
        typer.echo(script)
        return
    code = launch.train(
        recipe, entry.command, resolved, path, resume=given.resume, workers=where, again=again
    )
    if code:
        raise typer.Exit(code)

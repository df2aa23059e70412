"""The command `emtrain`.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Errors that a
person can mend are one message on stderr and exit code 1; `--debug` shows the traceback as well.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from em_train.config import Layer

app = typer.Typer(
    name="emtrain",
    help="Learn from electron-microscopy volumes: first without labels, then with few.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="PATH", help="Also write the figures there as JSON."),
]


@app.command("dense-ssl")
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
        typer.Option("--out", metavar="RUN", help="Run folder. Default: runs/dense-ssl-<time>."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Start from a preset: default, demo.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .toml file, or the config.json of a run.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. optim.lr=3e-4."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its configuration.")
    ] = False,
    show_config: Annotated[
        bool,
        typer.Option("--show-config", help="List every key, its value and meaning, and leave."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Learn classes of content for every pixel, without labels.

    An encoder gives every pixel one of K classes, a predictor guesses the classes of a slice from
    its neighbours. The run folder holds pictures, weights, metrics and `report.html`.

    For instance: `emtrain dense-ssl --data raw.zarr --out runs/first --set optim.steps=2000`
    """
    from em_train import config as configuration
    from em_train import stop
    from em_train.recipes import dense_ssl as recipe
    from em_train.run_folder import new_run, resumed_run, stored_config

    command = "dense-ssl"
    layers = []
    if resume:
        if out is None:
            raise ValueError("--resume needs the run folder: give it with --out")
        layers.append(stored_config(out, command))
    layers += _layers(command, preset, config, set_)
    if data:
        layers.append(configuration.Layer("--data", {"data": {"volumes": [*map(_absolute, data)]}}))
    resolved = configuration.resolve(recipe.Config, layers)
    if show_config:
        _print_config(resolved)
        return
    path = out or Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    recipe.check(resolved)
    folder = (resumed_run if resume else new_run)(path, resolved, command)
    try:
        done = recipe.run(resolved, folder, resume=resume)
    except Exception as error:
        folder.log(f"stopped by {type(error).__name__}: {error}")
        raise
    if not done:
        again = f"emtrain {command} --out {shlex.quote(str(path))} --resume"
        typer.echo(f"saved; go on with: {again}", err=True)
        raise typer.Exit(stop.SAVED)
    typer.echo(f"look at {folder.report}")


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Where to write the OME-Zarr.")],
    shape: Annotated[str, typer.Option(metavar="Z,Y,X", help="Size in voxels.")] = "64,384,384",
    voxel_nm: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Voxel size in nanometres.")
    ] = "17.6,8,8",
    seed: Annotated[int, typer.Option(help="Another seed, another piece of tissue.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another property, e.g. noise=0.1."),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="List every property and leave.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a synthetic EM volume with its truth as OME-Zarr.

    Raw voxels at the root, `labels/classes` and `labels/instances` beside them.

    For instance: `emtrain synth tissue.zarr --shape 100,512,512 --voxel-nm 10,10,10`
    """
    from em_train import config as configuration
    from em_train.synth import SyntheticConfig, write_synthetic

    layers = [
        configuration.Layer(
            "options",
            {
                "shape_vx": _numbers("--shape", shape, int),
                "voxel_size_nm": _numbers("--voxel-nm", voxel_nm, float),
                "seed": seed,
            },
        ),
        configuration.set_layer(set_ or []),
    ]
    resolved = configuration.resolve(SyntheticConfig, layers)
    if show_config:
        _print_config(resolved)
        return
    write_synthetic(resolved, out, overwrite=overwrite)


@app.command()
def info(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOLUME|RUN|WEIGHTS]", help="What to describe; nothing: this machine."
        ),
    ] = None,
    thumbnail: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Also draw the middle of the volume, from two sides."),
    ] = None,
    json_path: Json = None,
    debug: Debug = False,
) -> None:
    """Describe this installation, a volume, a run or weights.

    Without an argument: versions, devices and which compiled operators are in use.
    A volume is a path, `file.h5::dataset`, or an address such as `https://…`, `s3://…`,
    `precomputed://…`.
    """
    from em_train.info import describe, print_description

    description = describe(path, thumbnail)
    print_description(description)
    if json_path:
        json_path.write_text(json.dumps(description, indent=2) + "\n")


def main() -> None:
    """Run `emtrain`, turning errors that a person can mend into one message."""
    # Set before torch is imported: threads that wait by spinning take the time of those that work.
    # On two cores that other processes want as well, training is 1.3 to 3 times faster like this; on
    # idle ones it is equal within the noise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        if "--debug" in sys.argv:
            raise
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(str(error) or type(error).__name__, err=True)
        sys.exit(1)
    except Exception:
        typer.echo("this is a bug in emtrain; please report what follows", err=True)
        raise


def _layers(
    command: str, preset: str | None, file: Path | None, assignments: list[str] | None
) -> list[Layer]:
    """The layers of a configuration, weakest first."""
    from em_train import config as configuration

    layers = []
    if preset:
        layers.append(configuration.preset_layer(preset, command))
    if file:
        layers.append(configuration.file_layer(file, command))
    if assignments:
        layers.append(configuration.set_layer(assignments))
    return layers


def _absolute(address: str) -> str:
    """The address of a volume that stays right when the run is resumed from another folder."""
    return str(Path(address).absolute()) if Path(address).exists() else address


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise ValueError(f"{option} is {text!r}; wanted three numbers z,y,x such as 64,384,384")
    return values


def _print_config(resolved: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from em_train import config as configuration

    values = configuration.flat(resolved)
    table = Table("key", "value", "meaning", box=box.SIMPLE_HEAD)
    for key in configuration.keys(type(resolved)):
        value, default = values[key.name], key.default
        shown = Text(str(value), style="" if value == default else "bold")
        if value != default:
            shown.append(f" (default {default})", style="not bold")
        table.add_row(Text(key.name, style="cyan"), shown, Text(key.meaning))
    Console().print(table)


if __name__ == "__main__":
    main()

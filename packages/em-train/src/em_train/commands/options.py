"""The command line itself: options that several commands share, and what their values mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from em_train.engine.config import Layer

app = typer.Typer(
    name="emtrain",
    help="Learn from electron-microscopy volumes: first without labels, then with few.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


# What a run cannot do without, whatever is asked to be written there.
OF_A_RUN = ("config.json", "metrics.jsonl", "classes.json", "scores.json", "report.json")


def writes(kind: str, *starts: bytes) -> Callable[[Path | None], Path | None]:
    """A check of the file that an option names: it can be written, and replaces one of its kind only."""

    def check(path: Path | None) -> Path | None:
        if path is None:
            return None
        from em_data import StoreExistsError
        from em_data.writer.place import check_apart

        try:
            check_apart(path)
        except StoreExistsError as error:
            raise typer.BadParameter(str(error)) from None
        if not path.parent.is_dir():
            raise typer.BadParameter(
                f"there is no folder {path.parent}; make it, or name another file"
            )
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file")
        if path.is_file():  # not a device, such as /dev/stdout
            with path.open("rb") as file:
                start = file.read(16).lower()
            if path.name in OF_A_RUN or (start and not start.startswith(starts)):
                raise typer.BadParameter(
                    f"{path} is there and is no {kind} that may be replaced; name another file"
                )
        return path

    return check


writes_png = writes("picture", b"\x89png")
writes_html = writes("report", b"<!doctype html")


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="PATH",
        callback=writes("table of figures", b"{", b"["),
        help="Also write the figures there as JSON.",
    ),
]

LABELS = (
    "ADDRESS or NAME=ADDRESS: a class where that volume is not 0; with @VALUE at its end, where it has "
    "this value. borders:INSTANCES: where instances meet. classes:MAP: every value above 0. A label "
    "image that is stored with the raw volume goes by its name, a file of this name by ./NAME."
)
Grey = Annotated[
    str,
    typer.Option(
        metavar="auto|run|volume|LOW,HIGH",
        help="Which grey values are 0 and 1 for the network: those of the run, of the volume, or two "
        "numbers. auto: the run's where the volume's lie within a tenth of their range, else the "
        "volume's.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="A .toml file, or the config.json of a run."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. optim.lr=3e-4."),
]
ShowConfig = Annotated[
    bool, typer.Option("--show-config", help="List every key, its value and meaning, and leave.")
]
SEED_LIMIT = 2**63 - 1
Channel = Annotated[
    str | None,
    typer.Option(metavar="N|NAME", help="Which channel, where the volume has several."),
]


def layers_of(
    command: str, preset: str | None, file: Path | None, assignments: list[str] | None
) -> list[Layer]:
    """The layers of a configuration, weakest first."""
    from em_train.engine import config as configuration

    layers = []
    if preset is not None:
        layers.append(configuration.preset_layer(preset, command))
    if file:
        layers.append(configuration.file_layer(file, command))
    if assignments:
        layers.append(configuration.set_layer(assignments))
    return layers


def presets_of(command: str) -> list[str]:
    """Names of the presets of a command, the default first."""
    from importlib import resources

    folder = resources.files("em_train") / "presets" / command
    found = (
        sorted(p.name.removesuffix(".toml") for p in folder.iterdir()) if folder.is_dir() else []
    )
    return sorted(found, key=lambda name: name != "default")


def was_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option, rather than its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def option_of(name: str) -> str:
    """How an option is typed, by its name in Python.

    >>> option_of("least_px")
    '--least-px'
    """
    return "--" + name.replace("_", "-")


def refuse_unused(run: Path, options: Sequence[str]) -> None:
    """Refuse options that say nothing about a run, where some were given."""
    from em_train.catalogue import entry_of

    if options:
        raise ValueError(
            f"{' and '.join(options)} would change nothing: {run} is a run of "
            f"{entry_of(run).command}, which does not know this; leave it out"
        )


def parse_range(option: str, text: str | None) -> tuple[int, int] | None:
    """A half-open range such as 880:900."""
    if text is None:
        return None
    first, colon, end = text.partition(":")
    if not (colon and text.isascii() and first.isdecimal() and end.isdecimal()):
        raise ValueError(f"{option} is {text!r}; wanted a range FIRST:END such as 12:16")
    return int(first), int(end)


def absolute(address: str) -> str:
    """The address of a volume that stays right when the run is resumed from another folder."""
    if not address.strip():
        raise ValueError("the address of a volume is empty; name one, such as --data raw.zarr")
    from em_data.formats.images import SCHEME as IMAGES
    from em_data.formats.options import split_options

    scheme = IMAGES if address.startswith(IMAGES) else ""
    place, _ = split_options(address.removeprefix(scheme))
    path, _, _ = place.partition("::")  # of HDF5
    more = address.removeprefix(scheme + path)
    return f"{scheme}{Path(path).absolute()}{more}" if Path(path).exists() else address


def absolute_labels(options: list[str], volumes: Sequence[str]) -> list[str]:
    """The same for labels; what names a label image that is stored beside one of the volumes stays."""
    from em_train.judge.labels import is_stored, parse

    found = []
    for one in map(parse, options):
        stays = Path(one.address).exists() and is_stored(one.address, volumes)
        found.append(one.at(one.address if stays else absolute(one.address)))
    return found


def parse_channel(text: str | None) -> int | str | None:
    """A channel by its number or its name."""
    if text is not None and not text.strip():
        raise ValueError("--channel is empty; give a number or a name, or leave it out")
    return int(text) if text and text.isdecimal() else text


def parse_numbers(option: str, text: str, kind: type, *, positive: bool = True) -> list[Any]:
    """Three numbers along z, y, x, such as 64,384,384; of sizes, above 0."""
    try:
        values = [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        values = []
    if (
        len(values) != 3
        or (kind is float and not all(map(math.isfinite, values)))
        or (positive and not all(value > 0 for value in values))
    ):
        above = " above 0" if positive else ""
        raise ValueError(
            f"{option} is {text!r}; wanted three numbers z,y,x{above} such as 64,384,384"
        )
    return values


def parse_layers(option: str, text: str) -> tuple[int, ...]:
    """Numbers of layers, such as 4,8,-1."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; wanted numbers such as 4,8,-1") from None


def print_config(resolved: Any) -> None:
    """Every key with its value and meaning, those that were changed in bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from em_train.engine import config as configuration

    values = configuration.flat(resolved)
    table = Table("key", "value", "meaning", box=box.SIMPLE_HEAD)
    for key in configuration.keys(type(resolved)):
        value, default = values[key.name], key.default
        shown = Text(str(value), style="" if value == default else "bold")
        if value != default:
            shown.append(f" (default {default})", style="not bold")
        table.add_row(Text(key.name, style="cyan"), shown, Text(key.meaning))
    Console().print(table)

"""The command line itself: options that several commands share, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
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


def in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written in the end."""
    if path and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}; make it, or name another file")
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="PATH",
        dir_okay=False,
        callback=in_a_folder,
        help="Also write the figures there as JSON.",
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
    if preset:
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


def parse_range(option: str, text: str | None) -> tuple[int, int] | None:
    """A half-open range such as 880:900."""
    if text is None:
        return None
    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit()):
        raise ValueError(f"{option} is {text!r}; wanted a range FIRST:END such as 12:16")
    return int(first), int(end)


def absolute(address: str) -> str:
    """The address of a volume that stays right when the run is resumed from another folder."""
    from em_data.formats.images import SCHEME as IMAGES
    from em_data.formats.options import split_options

    scheme = IMAGES if address.startswith(IMAGES) else ""
    place, _ = split_options(address.removeprefix(scheme))
    path, _, _ = place.partition("::")  # of HDF5
    more = address.removeprefix(scheme + path)
    return f"{scheme}{Path(path).absolute()}{more}" if Path(path).exists() else address


def absolute_labels(option: str) -> str:
    """The same for NAME=ADDRESS@VALUE."""
    from em_train.segment.labels import parse

    name, address, value = parse(option)
    return f"{name}={absolute(address)}" + ("" if value is None else f"@{value}")


def parse_channel(text: str | None) -> int | str | None:
    """A channel by its number or its name."""
    return int(text) if text and text.isdecimal() else text


def parse_numbers(option: str, text: str, kind: type, *, positive: bool = True) -> list[Any]:
    """Three numbers along z, y, x, such as 64,384,384; of sizes, above 0."""
    try:
        values = [kind(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or (positive and not all(value > 0 for value in values)):
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

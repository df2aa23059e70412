"""Commands that learn: one for every recipe of the catalogue, all with the same options."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any

from em_train.catalogue import RECIPES, Entry
from em_train.commands.options import absolute, app, presets_of
from em_train.commands.start import Given, start

PANEL = "Learn"


def replace(option: Any, text: str) -> Any:
    """An option of Typer with another help text."""
    changed = copy(option)
    changed.help = text
    return changed


def add_command(entry: Entry) -> None:
    """Give a recipe its command: the options of every recipe and, after --data, its own."""
    own: Callable[..., None] = train
    if entry.options:
        own = importlib.import_module(entry.options).train
    shared = [field.name for field in dataclasses.fields(Given)]

    def command(**typed: Any) -> None:
        given = Given(**{name: typed.pop(name) for name in shared})
        own(entry, given, **typed)

    hints = typing.get_type_hints(Given, include_extras=True)
    told = {  # what differs from recipe to recipe
        "preset": f"Start from a preset: {', '.join(presets_of(entry.command))}.",
        "out": f"Run folder. Default: runs/{entry.command}-TIME.",
    }
    for name, text in told.items():
        kind, option = typing.get_args(hints[name])
        hints[name] = Annotated[kind, replace(option, text)]
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(Given)
    ]
    _, _, *extra = inspect.signature(own, eval_str=True).parameters.values()
    command.__signature__ = inspect.Signature([parameters[0], *extra, *parameters[1:]])  # type: ignore[attr-defined]
    app.command(entry.command, rich_help_panel=PANEL, help=inspect.cleandoc(entry.help))(command)


def train(entry: Entry, given: Given) -> None:
    """Train a recipe that has no options of its own."""
    from em_train.engine.config import Layer

    layers = given.layers(entry.command)
    if given.data:
        layers.append(Layer("--data", {"data": {"volumes": [*map(absolute, given.data)]}}))
    start(entry, given, layers)


for one in RECIPES.values():
    add_command(one)

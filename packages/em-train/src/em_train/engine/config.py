"""Configuration: defaults < preset < file < `--set`, validated as a whole, saved as resolved.

A configuration is a tree of frozen dataclasses, each owned by the part that it configures. The
meaning of a key is the string below its field. This module knows no recipe.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import math
import textwrap
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic

from em_train.engine import stored
from em_train.engine.atomic import replacing
from em_train.engine.errors import ConfigError

T = TypeVar("T")
LARGEST = 2**20  # of anything that a network has: channels, layers, heads
REMEDY = "give --config a .toml, or the config.json of a run"
Tree = Mapping[str, Any]


class Layer(NamedTuple):
    """Some keys and where they come from, for messages."""

    origin: str
    values: Tree


class Key(NamedTuple):
    """One key of a configuration, for people."""

    name: str
    type: str
    default: Any
    meaning: str


def resolve(cls: type[T], layers: Sequence[Layer]) -> T:
    """The configuration `cls` with the layers applied in order; later ones win.

    Every unknown key and every wrong value of all layers is named in one error.
    """
    known = {key.name: key for key in keys(cls)}
    problems: list[str] = []
    origins: dict[str, str] = {}  # where the value of a key comes from
    # A recipe may give a part other defaults than the part has by itself.
    merged: dict[str, Any] = dataclasses.asdict(cls())  # type: ignore[call-overload]
    for layer in layers:
        for name, value in _leaves(cls, layer.values):
            if name in known and isinstance(value, bool) and known[name].type in ("int", "float"):
                problems.append(f"{name} ({layer.origin}): wanted a number, got {value}")
            elif name in known and name.startswith("model.") and _largest(value) > LARGEST:
                problems.append(
                    f"{name} ({layer.origin}): no network is so large; wanted at most {LARGEST}, got "
                    f"{value}"
                )
            elif name in known:
                _put(merged, name, value)
                origins[name] = layer.origin
            elif any(key.startswith(f"{name}.") for key in known):
                problems.append(f"{name} ({layer.origin}): wanted a group of keys, got {value!r}")
            else:
                problems.append(f"{name} ({layer.origin}): {_suggestion(name, list(known))}")
    config: T | None = None
    try:
        config = pydantic.TypeAdapter(cls).validate_python(merged)
    except pydantic.ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            got = problem["input"]
            shown = f", got {got!r}" if not isinstance(got, Mapping) else ""
            whose = _origin(name, origins)
            problems.append(f"{name or cls.__name__}{whose}: {message}{shown}")
    if config is not None:
        for name, value in flat(config).items():
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{name}: wanted a finite number, got {value}")
    if problems or config is None:
        raise ConfigError("\n".join(["the configuration has errors:", *problems]))
    return config


def keys(cls: type, defaults: Any = None) -> Iterator[Key]:
    """All keys with their types, defaults and meanings, in the order of the dataclasses."""
    defaults = cls() if defaults is None else defaults
    meanings, types = _meanings(cls), typing.get_type_hints(cls, include_extras=False)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            for key in keys(types[field.name], getattr(defaults, field.name)):
                yield key._replace(name=f"{field.name}.{key.name}")
        else:
            kind = types[field.name]
            shown = (
                kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
            )
            default, meaning = getattr(defaults, field.name), meanings.get(field.name, "")
            yield Key(field.name, shown.replace("typing.", ""), default, meaning)


def flat(config: Any) -> dict[str, Any]:
    """A resolved configuration as dotted keys and values."""
    return dict(_leaves(type(config), dataclasses.asdict(config)))


def differences(a: Any, b: Any) -> list[str]:
    """Dotted keys in which two configurations of one class differ, with both values."""
    left, right = flat(a), flat(b)
    return [
        f"{name}: {left[name]!r} ≠ {right[name]!r}" for name in left if left[name] != right[name]
    ]


def save(config: Any, command: str, path: Path) -> None:
    """Write a resolved configuration so that `--config` can read it again."""
    text = json.dumps({"command": command, **dataclasses.asdict(config)}, indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


# Layers ------------------------------------------------------------------------------------------


def file_layer(path: Path, command: str) -> Layer:
    """A TOML file, or the `config.json` of a run."""
    if not path.exists():
        raise ConfigError(f"no configuration at {path}; {REMEDY}")
    try:
        if path.suffix == ".json":
            tree = stored.read_json(path, dict[str, Any], REMEDY)
        else:
            tree = tomllib.loads(stored.read_text(path, REMEDY))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML ({error}); {REMEDY}") from None
    written_for = tree.pop("command", command)
    if written_for != command:
        raise ConfigError(f"{path} configures 'emtrain {written_for}', not 'emtrain {command}'")
    return Layer(str(path), tree)


def preset_layer(name: str, command: str) -> Layer:
    """A preset that ships with the package."""
    found = {path.name.removesuffix(".toml"): path for path in preset_files(command)}
    if name not in found:
        raise ConfigError(
            f"--preset: no preset {name!r} for {command}; there are: {', '.join(sorted(found))}"
        )
    return Layer(f"preset {name}", tomllib.loads(found[name].read_text()))


def preset_files(command: str) -> list[Any]:
    """The preset files of a command, each a readable resource."""
    folder = resources.files("em_train") / "presets" / command
    return [path for path in folder.iterdir() if path.name.endswith(".toml")]


def set_layer(assignments: Sequence[str]) -> Layer:
    """`key=value` pairs; a value is read as TOML, and as plain text where it is none.

    >>> set_layer(["optim.lr=3e-4", "run.device=cpu"]).values
    {'optim': {'lr': 0.0003}, 'run': {'device': 'cpu'}}
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {assignment!r}: wanted KEY=VALUE, for instance optim.lr=3e-4")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        _put(tree, name.strip(), parsed)
    return Layer("--set", tree)


# Inside ------------------------------------------------------------------------------------------


def _leaves(cls: type, tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; a group that `cls` does not know is a leaf, so that it is refused."""
    types = typing.get_type_hints(cls)
    for name, value in tree.items():
        if dataclasses.is_dataclass(types.get(name)) and isinstance(value, Mapping):
            yield from _leaves(types[name], value, f"{prefix}{name}.")
        elif isinstance(value, Mapping) and value and name not in types:
            yield from ((f"{prefix}{name}.{inner}", v) for inner, v in value.items())
        else:
            yield f"{prefix}{name}", value


def _largest(value: Any) -> float:
    """The largest number of a value or a list of values; 0 of what holds none."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((one for one in values if isinstance(one, int | float)), default=0)


def _origin(name: str, origins: Mapping[str, str]) -> str:
    """Where a key, the value that it lies in, or what lies in it was given, for a message."""
    whole = name
    while name and name not in origins:
        name = name.rpartition(".")[0]
    if name:
        return f" ({origins[name]})"
    group = f"{whole}." if whole else ""
    inside = (origin for key, origin in origins.items() if key.startswith(group))
    found = ", ".join(dict.fromkeys(inside))
    return f" ({found})" if found else ""


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for inner, part in value.items():
            _put(tree, f"{name}.{inner}", part)
        return
    *groups, last = name.split(".")
    for group in groups:
        if tree.get(group) is None:  # not there, or a group that is optional
            tree[group] = {}
        tree = tree[group]
        if not isinstance(tree, dict):
            raise ConfigError(f"{name}: {group} is a value, not a group of keys")
    tree[last] = value


def _suggestion(name: str, known: Sequence[str]) -> str:
    leaf = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    near = near or [key for key in known if key.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f"unknown key; did you mean {near[0]}?" if near else "unknown key; --show-config lists all"
    )


def _meanings(cls: type) -> dict[str, str]:
    """The string literal below each field of a dataclass, those that it inherits among them."""
    meanings: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                meanings[field.target.id] = " ".join(below.value.value.split())
    return meanings

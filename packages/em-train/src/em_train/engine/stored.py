"""The one door to the text files of a run: their shape is checked, and what is wrong has a name.

A run folder is copied, edited by hand, cut off by a full disk, or made by somebody else. So nothing
that lies in one is taken for what it should be. Weights have their own door (`em_models.load`), and
so have checkpoints (`engine.checkpoint`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pydantic

from em_train.engine.errors import StoredFileError

T = TypeVar("T")

MOST_BYTES = 2**28  # of a text file of a run; what is larger is something else
GROUPS = ("data", "model", "loss", "optim", "run")  # of the configuration of every recipe
MOST_DEEP = 32  # groups within groups
MOST_NAMED = 3  # problems that a message names


class Rows(NamedTuple):
    """What was measured, and which lines of the file cannot be read."""

    rows: list[dict[str, Any]]
    damaged: list[int]  # counted from 1; not a last one without an end, as a kill leaves it


def read_text(path: Path, remedy: str) -> str:
    """The text of a file; a folder, a pipe, a device, and what is no text are refused."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            what = f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "no plain file"
            raise StoredFileError(f"{path} is {what}; wanted a text file; {remedy}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StoredFileError(f"{path} is no text ({error.reason}); {remedy}") from None
    except OSError as error:
        raise StoredFileError(f"{path} cannot be read ({error.strerror}); {remedy}") from error


def read_json(path: Path, kind: type[T], remedy: str) -> T:
    """What a JSON file holds, as `kind`: a dataclass, or a type such as `dict[str, Any]`.

    Args:
        path: the file.
        kind: what it must hold; whatever has other names or types is refused.
        remedy: what a person can do about a file that is damaged.
    """
    text = read_text(path, remedy)
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, or numbers and nesting without end
        reason = str(error).partition(";")[0]
        raise StoredFileError(f"{path} is damaged: it is no JSON ({reason}); {remedy}") from None
    if _depth(tree) > MOST_DEEP:
        raise StoredFileError(f"{path} is damaged: it is nested too deeply; {remedy}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(tree)
    except pydantic.ValidationError as error:
        raise StoredFileError(f"{path} is damaged: {_problems(error)}; {remedy}") from None


def read_config(run: Path) -> dict[str, Any]:
    """The `config.json` of a run: its command, and groups of keys."""
    path, remedy = run / "config.json", "put back a copy of it, or start a new run"
    if not os.path.lexists(path):
        raise StoredFileError(
            f"{run} holds no run: there is no config.json; give a folder that emtrain made with --out"
        )
    tree = read_json(path, dict[str, Any], remedy)
    if not isinstance(tree.get("command"), str):
        raise StoredFileError(f"{path} belongs to no run: it names no command; {remedy}")
    for name, group in tree.items():
        if name in GROUPS and not isinstance(group, Mapping):
            raise StoredFileError(
                f"{path} is damaged: {name} is {_short(group)}, wanted a group of keys; {remedy}"
            )
    return tree


def read_rows(run: Path) -> Rows:
    """What a run measured, without the lines of `metrics.jsonl` that are no rows."""
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return Rows([], [])
    if not path.is_file():
        raise StoredFileError(
            f"{path} is no plain file; put back a copy of it, or remove it: then the curves are lost"
        )
    rows, damaged = [], []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # bytes that are no text are a ValueError too
            row = None
        if _is_row(row):
            rows.append(row)
        elif line.strip() and number <= len(lines):
            damaged.append(number)
    return Rows(rows, damaged)


def leads_out(run: Path, path: Path) -> bool:
    """Whether a path within a run folder ends, through links or `..`, somewhere else."""
    real = Path(os.path.realpath(path))
    return not real.is_relative_to(os.path.realpath(run))


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(type(value) in (int, float) for value in row.values())
    )


def _depth(tree: Any) -> int:
    depth, level = 0, [tree] if isinstance(tree, dict | list) else []
    while level:
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [v for part in inside for v in part if isinstance(v, dict | list)]
        depth += 1
    return depth


def _problems(error: pydantic.ValidationError) -> str:
    found = [
        f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}, got {_short(one['input'])}"
        for one in error.errors()
    ]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}…"

"""By which plan a store was begun, and whether that is the plan of who goes on with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zarr

from em_data.errors import StoreExistsError
from em_data.writer.store import ImageConfig

ATTRIBUTE = "em_data"  # of the finished store: the plan it was written by


def check_same(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a store that was begun with another configuration, naming what differs."""
    a, b = dict(_leaves(stored)), dict(_leaves(wanted))
    changed = [
        f"{name}: {a.get(name)!r} ≠ {b.get(name)!r}"
        for name in sorted((a.keys() | b.keys()) - {"block_vx"})
        if a.get(name) != b.get(name)
    ]
    if changed:
        raise StoreExistsError(
            f"{path} was begun with another configuration (its value ≠ yours):\n"
            + "\n".join(changed)
            + "\ngo on without these changes, choose another name, or begin anew with --overwrite"
        )


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; short lists, such as sizes, are values."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}".lstrip("."))
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{name}.{number}")
    else:
        yield name, tree


def plan_of_finished(path: Path) -> Mapping[str, Any]:
    """The plan that a whole store was written by."""
    try:
        plan = dict(zarr.open_group(path, mode="r", use_consolidated=False).attrs)[ATTRIBUTE]
        assert isinstance(plan, Mapping)
    except Exception as error:  # whatever lies there, it is none of ours
        raise StoreExistsError(
            f"{path} exists already and was not written block by block, so there is nothing to go on "
            "with; choose another name, or replace it with --overwrite"
        ) from error
    return plan


def image_config(described: Mapping[str, Any]) -> ImageConfig:
    """The image that a plan, as JSON holds it, describes."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ImageConfig(**{key: tuples(value) for key, value in described.items()})

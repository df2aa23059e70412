"""Folders of pictures that are whole or not there: written under another name, then renamed.

A note in each says what it is and which files are its own, so that nothing else is ever replaced.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from em_data import StoreExistsError
from em_data.formats.images import some

from em_train.engine.stored import read_json


def check_replaceable(out: Path, note: str, what: str, *, overwrite: bool) -> None:
    """Refuse a place that is taken, but with `overwrite` for what was written there before.

    Args:
        out: folder that will be written.
        note: name of the file in it that lists its own ones as `files`.
        what: it is, in words.
        overwrite: whether it may be replaced.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise StoreExistsError(
            f"{out} exists already; choose another name, or replace it with --overwrite"
        )
    if out.is_symlink() or not out.is_dir() or not (out / note).exists():
        raise StoreExistsError(
            f"{out} is no {what}, and --overwrite replaces nothing else here; choose another name"
        )
    own = {note, *read_json(out / note, dict[str, Any], "choose another name").get("files", ())}
    others = [one.name for one in out.iterdir() if one.name not in own]
    if others:
        raise StoreExistsError(
            f"{out} holds {some(others)}, which is no part of a {what} and would be lost; move it "
            "away, or choose another name"
        )


def put_in_place(begun: Path, out: Path) -> None:
    """Give the folder its name; what it replaces goes when the new one is there."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    begun.rename(out)
    shutil.rmtree(old, ignore_errors=True)

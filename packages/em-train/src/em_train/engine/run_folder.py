"""The run folder: everything that a run leaves behind, always under the same names.

config.json     the resolved configuration; `--config` reads it again
.lock           held by the process that works here
grey.json       the grey values of its volumes that are 0 and 1 for the network
metrics.jsonl   one JSON object per logged step
checkpoints/    step-*.pt, last, best where a recipe measures one
weights/        safetensors + config.json, for use elsewhere
images/         pictures
report.html     all of it to look at
bad-batch-*.pt  the batch at which a run gave up because of gradients that are not finite
tensorboard/    the rows again, with run.tensorboard
report.json     what the recipe says in it
log.txt         when it started, stopped and why, with times
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from em_data.writer.place import check_apart

from em_train.engine import config as configuration
from em_train.engine import stored
from em_train.engine.atomic import remove_leftovers, replacing
from em_train.engine.errors import RunFolderError, StoredFileError
from em_train.engine.progress import say
from em_train.engine.run_config import RESULT_KEYS

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

# What a start that was killed may leave before there is a run.
OWN = re.compile(r"\.lock|\.config\.json\.(\d+\.)?tmp")
STEP = re.compile(r"step-(\d{1,15})\.png")
# What may differ when a run is resumed: nothing that changes its result. That the data are the same
# is checked by the recipe, wherever they lie now.
OPTIONS = ("--data", "options")  # layers of what was typed as these
TYPED = {"volumes": "--data", "labels": "--labels", "target": "--target"}
NAMED = 5  # damaged lines that a message names
FREE_KEYS = ("run.", "data.threads", "data.volumes")


class RunFolder:
    """A folder that belongs to one run of one recipe with one configuration.

    Of several processes one `leads`; for the others, what writes here does nothing.
    """

    def __init__(self, path: Path, *, leads: bool = True) -> None:
        self.path, self.leads = path, leads
        self.begun = False  # whether a run has gone on here
        self.mirrored = False  # whether rows are written for TensorBoard too
        self._board: Any = None
        if leads:
            _hold(self)
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights"
        self.images = path / "images"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"

    def log(self, message: str) -> None:
        """Add a line with the time to `log.txt`."""
        if not self.leads:
            return
        self.begun = True
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Add a row to `metrics.jsonl`."""
        if not self.leads:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._board:
            for key, value in row.items():
                self._board.add_scalar(key, value, row["step"])

    def close(self) -> None:
        """Flush what is buffered; the lock stays until the process ends."""
        if self._board:
            self._board.close()

    def rows(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl`."""
        return stored.read_rows(self.path).rows

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, because it will be done again."""
        if not self.leads:
            return
        self.begun = True
        rows, damaged = stored.read_rows(self.path)
        if damaged:
            lines = ", ".join(map(str, damaged[:NAMED])) + (" …" if len(damaged) > NAMED else "")
            say(f"{self.metrics}: what cannot be read is left out (line {lines})")
        kept = [row for row in rows if row["step"] <= step]
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        for later, picture in pictures_of(self.path).items():
            if later > step:
                picture.unlink()
        if self.mirrored:
            from em_train.engine import tensorboard

            self._board = tensorboard.writer(self.path, step)


def pictures_of(path: Path) -> dict[int, Path]:
    """The pictures through time of a run, by their steps."""
    named = {found: STEP.fullmatch(found.name) for found in (path / "images").glob("step-*.png")}
    steps = {int(match[1]): found for found, match in named.items() if match}
    return dict(sorted(steps.items()))


def read_by(path: Path) -> list[str]:
    """The addresses of what a run learned from."""
    return _addresses(stored.read_config(path))


def check_own(path: Path, layers: Sequence[configuration.Layer]) -> None:
    """Refuse `--data` and `--labels` that are not those of the run that goes on, the first layer."""
    own = layers[0].values.get("data", {})
    for layer in layers[1:]:
        given = layer.values.get("data", {}) if layer.origin in OPTIONS else {}
        for key, option in TYPED.items():
            wanted = [*map(str, own.get(key) or ())]
            if key in given and not _are_same(given[key], wanted):
                moved = "; volumes that were moved are named with --set data.volumes=…"
                raise RunFolderError(
                    f"{path} was started with {option} {' '.join(wanted)}, not {' '.join(given[key])}; "
                    f"leave {option} out, or start a new run with another --out"
                    + (moved if key == "volumes" else "")
                )


def _are_same(a: Sequence[str], b: Sequence[str]) -> bool:
    return [*map(os.path.realpath, a)] == [*map(os.path.realpath, b)]


def _addresses(tree: Mapping[str, Any]) -> list[str]:
    found = [tree.get("data", {}).get(key) for key in ("volumes", "labels")]
    return [str(one) for own in found if isinstance(own, list | tuple) for one in own]


def new_run(path: Path, config: Any, command: str) -> RunFolder:
    """Make the folder of a new run; a folder with anything in it is refused."""
    check_apart(path, _addresses(dataclasses.asdict(config)))
    if path.exists() and (
        not path.is_dir() or not all(OWN.fullmatch(inside.name) for inside in path.iterdir())
    ):
        what = "holds another run" if (path / "config.json").exists() else "is not an empty folder"
        raise RunFolderError(
            f"{path} {what}; choose another --out"
            + (", or continue that run with --resume" if what.startswith("holds") else "")
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        # First of all, so that what is killed at once is a run that can be resumed.
        configuration.save(config, command, path / "config.json")
        folder.images.mkdir()
        folder.checkpoints.mkdir()
    except RunFolderError:
        raise
    except OSError as error:
        raise OSError(
            f"cannot write a run to {path} ({error.strerror}); choose another --out"
        ) from error
    return folder


def resumed_run(path: Path, config: Any, command: str) -> RunFolder:
    """Open the folder of a run to go on with it; another configuration is refused."""
    check_config(path, config, command)
    folder = RunFolder(path)
    remove_leftovers(path)
    for name in ("log.txt", "metrics.jsonl"):  # a pipe would be waited for
        if os.path.lexists(path / name) and not (path / name).is_file():
            raise StoredFileError(
                f"{path / name} is no plain file; remove it, or put back a copy of it"
            )
        if stored.leads_out(path, path / name):  # lines would be added to somebody else's file
            raise StoredFileError(
                f"{path / name} leads out of the run; put a copy of the file in its place"
            )
    if folder.rows() and not any(folder.checkpoints.glob("step-*.pt")):
        raise RunFolderError(
            f"{path} has measured steps but no checkpoint to go on from; put its checkpoints back, or "
            "start a new run with another --out"
        )
    folder.images.mkdir(exist_ok=True)
    folder.checkpoints.mkdir(exist_ok=True)
    return folder


def check_config(path: Path, config: Any, command: str, *, fixed: Sequence[str] = ()) -> None:
    """Refuse another configuration than a run was started with, but for what is free and not `fixed`."""
    begun = configuration.resolve(type(config), [stored_config(path, command)])
    lines = {line.partition(":")[0]: line for line in configuration.differences(begun, config)}
    changed = [
        line
        for key, line in lines.items()
        if not key.startswith(FREE_KEYS) or key in (*RESULT_KEYS, *fixed)
    ]
    if changed:
        raise RunFolderError(
            f"{path} was started with another configuration (its value ≠ yours):\n"
            + "\n".join(changed)
            + "\nresume without these changes, or start a new run with another --out"
        )


def discard(folder: RunFolder) -> None:
    """Remove the folder of a new run that was refused before it began; what else lies there stays."""
    for name in ("config.json", ".launch", ".lock"):
        (folder.path / name).unlink(missing_ok=True)
    for empty in (folder.images, folder.checkpoints, folder.path):
        with suppress(OSError):
            empty.rmdir()


def stored_config(path: Path, command: str) -> configuration.Layer:
    """The configuration that a run was started with."""
    if not os.path.lexists(path / "config.json"):
        raise RunFolderError(f"{path} holds no run to resume; start one without --resume")
    stored.read_config(path)  # its shape
    return configuration.file_layer(path / "config.json", command)


def stored_part(path: Path, command: str, group: str, cls: type[T]) -> T:
    """One group of the configuration that a run was started with, such as `data`."""
    begun = stored_config(path, command)
    if group not in begun.values:
        raise StoredFileError(
            f"{begun.origin} is damaged: it has no group {group}; put back a copy of it, or start a "
            "new run"
        )
    return configuration.resolve(cls, [configuration.Layer(begun.origin, begun.values[group])])


def finished(path: Path) -> Path:
    """The weights that a finished run has left for use elsewhere."""
    weights = path / "weights"
    if not weights.is_dir():
        raise RunFolderError(f"{path} holds no weights yet; finish the run first, with --resume")
    return weights


def _hold(folder: RunFolder) -> None:
    """Lock the folder until the process ends or nobody uses `folder` any more."""
    if sys.platform == "win32":
        return
    lock = os.open(folder.path / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise RunFolderError(
            f"another process works in {folder.path}; wait for it, stop it, or choose another --out"
        ) from None
    weakref.finalize(folder, os.close, lock)

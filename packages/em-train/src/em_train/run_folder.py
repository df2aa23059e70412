"""The run folder: everything that a run leaves behind, always under the same names.

config.json     the resolved configuration; `--config` reads it again
metrics.jsonl   one JSON object per logged step
checkpoints/    step-*.pt, last
weights/        safetensors + config.json, for use elsewhere
images/         pictures
report.html     all of it to look at
log.txt         what was printed, with times
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_train import checkpoint
from em_train import config as configuration
from em_train.errors import RunFolderError


class RunFolder:
    """A folder that belongs to one run of one recipe with one configuration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights"
        self.images = path / "images"
        self.metrics = path / "metrics.jsonl"
        self.report = path / "report.html"

    def log(self, message: str) -> None:
        """Add a line with the time to `log.txt`."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Add a row to `metrics.jsonl`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """All rows of `metrics.jsonl`; a last line that was cut off by a kill is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, because it will be done again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with checkpoint.replacing(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        for picture in self.images.glob("step-*.png"):
            if int(picture.stem.removeprefix("step-")) > step:
                picture.unlink()


def new_run(path: Path, config: Any, command: str) -> RunFolder:
    """Make the folder of a new run; a folder with anything in it is refused."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        what = "holds another run" if (path / "config.json").exists() else "is not an empty folder"
        raise RunFolderError(
            f"{path} {what}; choose another --out"
            + (", or continue that run with --resume" if what.startswith("holds") else "")
        )
    folder = RunFolder(path)
    try:
        folder.images.mkdir(parents=True)
        folder.checkpoints.mkdir()
        configuration.save(config, command, path / "config.json")
    except OSError as error:
        raise type(error)(
            f"cannot write a run to {path} ({error.strerror}); choose another --out"
        ) from error
    return folder


def resumed_run(
    path: Path,
    config: Any,
    command: str,
    may_change: Callable[[str], bool] = lambda key: key.startswith("run.") and key != "run.seed",
) -> RunFolder:
    """Open the folder of a run to go on with it; another configuration is refused."""
    layer = stored_config(path, command)
    stored = configuration.resolve(type(config), [layer])
    changed = [
        line
        for line in configuration.differences(stored, config)
        if not may_change(line.partition(":")[0])
    ]
    if changed:
        raise RunFolderError(
            f"{path} was started with another configuration (its value ≠ yours):\n"
            + "\n".join(changed)
            + "\nresume without these changes, or start a new run with another --out"
        )
    folder = RunFolder(path)
    checkpoint.remove_leftovers(folder.checkpoints)
    return folder


def stored_config(path: Path, command: str) -> configuration.Layer:
    """The configuration that a run was started with."""
    if not (path / "config.json").exists():
        raise RunFolderError(f"{path} holds no run to resume; start one without --resume")
    return configuration.file_layer(path / "config.json", command)

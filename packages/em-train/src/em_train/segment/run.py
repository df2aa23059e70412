"""A finished segmentation: its best network, its classes and thresholds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch

from em_train.engine.device import choose_device
from em_train.engine.precision import Precision
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part
from em_train.segment.data import DataConfig
from em_train.segment.loss import LossConfig


class StoredRun(NamedTuple):
    """A segmentation run that is done."""

    network: Any
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    data: DataConfig
    loss: LossConfig
    device: torch.device
    precision: Precision


def open_run(run: Path) -> StoredRun:
    """The best network of a run, on the device that the run chose, and how it is read."""
    how = stored_part(run, "segment", "run", RunConfig)
    try:
        classes = json.loads((run / "classes.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{run} has no classes.json; finish the run first, with emtrain segment --resume"
        ) from None
    device = choose_device(how.device)
    return StoredRun(
        network=em_models.load(run / "weights" / "network").to(device).eval(),
        names=tuple(classes["names"]),
        thresholds=tuple(classes["thresholds"]),
        data=stored_part(run, "segment", "data", DataConfig),
        loss=stored_part(run, "segment", "loss", LossConfig),
        device=device,
        precision=how.precision,
    )

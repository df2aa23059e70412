"""A finished segmentation: its best network, its classes and thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch

from em_train.engine.device import choose_device
from em_train.engine.errors import StoredFileError
from em_train.engine.precision import Precision
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part
from em_train.engine.stored import read_json
from em_train.segment.data import DataConfig
from em_train.segment.loss import LossConfig
from em_train.segment.networks import NETWORKS


@dataclass(frozen=True)
class StoredClasses:
    """What `classes.json` holds."""

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    borders: bool | tuple[str, ...] = ()  # true: of runs whose only class is one


class StoredRun(NamedTuple):
    """A segmentation run that is done."""

    network: Any
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    borders: tuple[str, ...]  # the classes that are where instances meet
    data: DataConfig
    loss: LossConfig
    device: torch.device
    precision: Precision


def open_run(run: Path) -> StoredRun:
    """The best network of a run, on the device that the run chose, and how it is read."""
    how = stored_part(run, "segment", "run", RunConfig)
    path = run / "classes.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run} has no classes.json; finish the run first, with emtrain segment --resume"
        )
    remedy = f"put back a copy of it, or write it again with emtrain segment --out {run} --resume"
    classes = read_json(path, StoredClasses, remedy)
    network: Any = em_models.load(run / "weights" / "network")
    if type(network) not in NETWORKS.values():
        raise StoredFileError(
            f"{run}/weights/network holds a {type(network).__name__}, wanted a "
            f"{' or '.join(cls.__name__ for cls in NETWORKS.values())}; put back a copy of the weights"
        )
    loss = stored_part(run, "segment", "loss", LossConfig)
    count = network.config.classes - (loss.kind == "softmax")
    if not len(classes.names) == len(classes.thresholds) == count:
        raise StoredFileError(
            f"{path} has {len(classes.names)} names and {len(classes.thresholds)} thresholds, and the "
            f"network {count} classes; {remedy}"
        )
    device = choose_device(how.device)
    known = classes.borders
    borders = known if isinstance(known, tuple) else classes.names if known else ()
    return StoredRun(
        network=network.to(device).eval(),
        names=classes.names,
        thresholds=classes.thresholds,
        borders=borders,
        data=stored_part(run, "segment", "data", DataConfig),
        loss=loss,
        device=device,
        precision=how.precision,
    )

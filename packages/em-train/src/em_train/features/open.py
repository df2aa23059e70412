"""The frozen encoder of a run, whichever recipe it is of."""

from __future__ import annotations

from pathlib import Path

import em_models
from em_models import Vit3d

from em_train.dense import run as dense_run
from em_train.dense.run import DenseRun
from em_train.engine.device import choose_device
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part
from em_train.mae.data import DataConfig
from em_train.mae.run import MaeRun


def open_run(run: Path) -> MaeRun | DenseRun:
    """The encoder of a run, whichever recipe it is of."""
    weights = run / "weights" / "encoder"
    if not (weights / "config.json").exists():
        raise FileNotFoundError(f"{run} holds no encoder; give a finished run of mae or dense-ssl")
    if not isinstance(encoder := em_models.load(weights), Vit3d):
        return DenseRun(*dense_run.open_run(run))
    data = stored_part(run, "mae", "data", DataConfig)
    how = stored_part(run, "mae", "run", RunConfig)
    return MaeRun(encoder.to(choose_device(how.device)).eval(), data)

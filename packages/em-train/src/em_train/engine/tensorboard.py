"""The measured rows once more, for those who look at runs with TensorBoard (an extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def require() -> Any:
    """The writer class of torch; where tensorboard is missing, how to get it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "run.tensorboard needs the package tensorboard; install it with: pip install "
            "tensorboard, or set run.tensorboard=false"
        ) from error
    return SummaryWriter


def writer(run: Path, step: int) -> Any:
    """A writer that goes on after `step`: what was written beyond it is hidden."""
    return require()(run / "tensorboard", purge_step=step + 1, flush_secs=10)

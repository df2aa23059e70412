"""The shuffle audit: train with context from unrelated places, where there is nothing to predict.

If codes are predicted all the same, they say something that does not depend on content: where a pixel
lies in its crop. The cross-entropy of an honest encoder stays at the entropy of the mean code.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_train.engine import config as configuration
from em_train.engine.config import Layer
from em_train.engine.run_folder import RunFolder, new_run

STEPS = 200  # a zero-padded encoder predicts .8 nat from nothing after 50
LAST = 0.1  # share of the rows that count: what was learned, without the noise of one batch


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a short training on shuffled context came to, in nats."""

    steps: int
    """Steps of the training."""
    cross_entropy: float
    """CE of the prediction from unrelated places, mean over the last tenth."""
    mean_code_entropy: float
    """H̄, the entropy of the mean code, over the same batches."""

    @property
    def information(self) -> float:
        """H̄ − CE: what is predicted from nothing."""
        return self.mean_code_entropy - self.cross_entropy


def shuffle_audit(
    config: Any, train: Callable[[Any, RunFolder], bool], *, command: str, steps: int = STEPS
) -> Audit | None:
    """Train afresh with the configuration of a run, but with context from unrelated places.

    Args:
        config: configuration of the run, with `data.shuffle_context`.
        train: the recipe's `run`; its rows hold `pred` (CE) and `information` (H̄ − CE).
        command: name of the recipe.

    Returns None when a signal asked to stop.
    """
    if config.data.batch_size < 2:
        raise ValueError(
            f"data.batch_size of the run is {config.data.batch_size}; the shuffle audit gives every "
            "target the context of another of the batch: wanted 2 or more, or leave it out with "
            "--audit-steps 0"
        )
    changes = {
        "data": {"shuffle_context": True},
        "optim": {"warmup_steps": min(config.optim.warmup_steps, steps // 10)},
        # Weights from elsewhere are not trained afresh; and nothing that only a person looks at.
        "run": {
            "steps": steps,
            "init": None,
            "picture_every": 10 * steps,
            "checkpoint_every": 10 * steps,
            "log_every": 5,
        },
    }
    layers = [Layer("run", dataclasses.asdict(config)), Layer("audit", changes)]
    audited = configuration.resolve(type(config), layers)
    with tempfile.TemporaryDirectory(prefix="emtrain-audit-") as temporary:
        folder = new_run(Path(temporary) / "run", audited, command)
        if not train(audited, folder):
            return None
        return summarise_rows(folder.rows())


def summarise_rows(rows: list[dict[str, Any]]) -> Audit:
    """What the last tenth of the measured rows say."""
    last = rows[-max(1, round(LAST * len(rows))) :]
    pred, information = (
        sum(row[key] for row in last) / len(last) for key in ("pred", "information")
    )
    return Audit(
        steps=int(rows[-1]["step"]), cross_entropy=pred, mean_code_entropy=pred + information
    )

"""Whether what was learned are numbers: weights that are not are never written as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

REMEDY = (
    "nothing is written to weights/. Start again with a lower optim.lr or run.precision=fp32, and look "
    "at the values of the voxels"
)


def require_finite(networks: nn.Module, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse networks with weights, or a run whose last loss, is NaN or infinite.

    Weights alone do not tell: those of a learning rate that was far too high may be finite and still
    give nothing but NaN, after which no step is taken any more.

    Args:
        networks: what is to be written.
        rows: what the run has measured.
    """
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses and not (isinstance(losses[-1], float | int) and math.isfinite(losses[-1])):
        raise FloatingPointError(f"the loss of the last step is {losses[-1]}, so {REMEDY}")
    state = networks.state_dict()
    bad = [
        name
        for name, one in state.items()
        if one.is_floating_point() and not torch.isfinite(one).all()
    ]
    if bad:
        raise FloatingPointError(
            f"{len(bad)} of {len(state)} tensors of the networks hold values that are NaN or infinite, "
            f"the first of them {bad[0]}, so {REMEDY}"
        )

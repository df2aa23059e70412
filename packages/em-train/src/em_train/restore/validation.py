"""How close to the truth held-out crops are brought, beside how close they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from em_losses import charbonnier
from torch import Tensor, nn

from em_train.engine.precision import autocast
from em_train.restore.data import Pair
from em_train.restore.networks import is_residual, restored


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What held-out crops say about a network; grey values from 0 to 1."""

    error: float
    """Charbonnier error of the repaired pixels."""
    before: float
    """The same of the damaged ones."""
    psnr: float
    """Peak signal-to-noise ratio of all pixels together in dB, the peak being the grey range."""
    psnr_before: float

    def row(self) -> dict[str, float]:
        """Numbers for metrics.jsonl."""
        return {
            "held_out_error": self.error,
            "held_out_psnr": self.psnr,
            "held_out_psnr_before": self.psnr_before,
        }

    def __str__(self) -> str:
        return f"held out {self.psnr:.2f} dB, damaged {self.psnr_before:.2f} dB"


@torch.inference_mode()
def look_at(network: nn.Module, pairs: Sequence[Pair], config: Any, device: torch.device) -> Seen:
    """Errors on held-out crops, in evaluation mode.

    Where nothing but noisy images is known, the truth is as noisy as what is shown.
    """
    rows = []
    for pair in pairs:
        found, shown, truth = repaired(network, pair, config, device)
        where = None if pair.where is None else pair.where.to(device)
        rows.append(
            (
                float(charbonnier(found, truth, where)),
                float(charbonnier(shown, truth, where)),
                squared_error(found, truth, where),
                squared_error(shown, truth, where),
            )
        )
    error, before, *squares = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    psnr, psnr_before = (-10 * math.log10(max(mean, 1e-12)) for mean in squares)
    return Seen(error=error, before=before, psnr=psnr, psnr_before=psnr_before)


def repaired(
    network: nn.Module, pair: Pair, config: Any, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A pair on the device: its middle slice repaired, as it was shown, and the truth: (B, 1, Y, X)."""
    shown, truth = pair.shown.to(device), pair.truth.to(device)
    with autocast(config.run.precision, device):
        found = restored(network, shown, is_residual(config.model, config.data)).float()
    middle = shown.shape[1] // 2
    return found, shown[:, middle : middle + 1], truth


def squared_error(found: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Mean squared difference, of all pixels or of some; the grey range is 1."""
    squares = (found - truth).double().square()
    return float(squares.mean() if where is None else squares[where].mean())

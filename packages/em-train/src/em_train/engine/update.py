"""One change of the weights from a loss: backward, clip, step, unless gradients are not finite.

A gradient that is NaN would poison every weight through the clipping, and the batch that caused it
has already poisoned the running statistics of the norms. So such a step changes neither. Whether it
is one is decided on the device, without waiting for it; it is looked at when rows are logged.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from em_train.engine import distributed
from em_train.engine.atomic import replacing
from em_train.engine.run_config import RunConfig


class Update:
    """Changes networks by the gradients of losses; a skipped step leaves no trace but a count."""

    def __init__(
        self,
        networks: nn.Module,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        *,
        clip_norm: float,
        run: RunConfig,
    ) -> None:
        self._optimiser, self._scaler, self._clip_norm = optimiser, scaler, clip_norm
        self._accumulate, self._bad_steps = run.accumulate, run.bad_steps
        self._parameters = [p for p in networks.parameters() if p.requires_grad]
        self._buffers = list(networks.buffers())
        self._kept = [b.clone() for b in self._buffers]
        self._taken = 0  # batches of the coming step
        device = self._parameters[0].device
        self._norm = torch.zeros((), device=device)
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # skipped, of them in a row

    def __call__(self, loss: Tensor) -> bool:
        """Take in the loss of one batch; True when that completed a step."""
        self._scaler.scale(loss / self._accumulate).backward()
        self._taken += 1
        if self._taken < self._accumulate:
            return False
        self._taken = 0
        optimiser: Any = self._optimiser
        self._scaler.unscale_(optimiser)
        self._norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        bad = ~self._norm.isfinite()  # equal on all processes, because the gradients are
        if optimiser.defaults.get("fused"):
            # As GradScaler does it: a fused optimiser steps or not without the host knowing.
            optimiser.grad_scale, optimiser.found_inf = None, bad.float()
            optimiser.step()
            del optimiser.grad_scale, optimiser.found_inf
        elif not bad:
            optimiser.step()
        if self._scaler.is_enabled():
            self._scaler.update()
        optimiser.zero_grad(set_to_none=True)
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(bad, kept, buffer))
            kept.copy_(buffer)
        skipped, in_a_row = self._counts
        self._counts = torch.stack([skipped + bad, (in_a_row + bad) * bad])
        return True

    def row(self) -> dict[str, float]:
        """What is logged of it; this waits for the device."""
        return {"grad_norm": float(self._norm), "skipped": int(self._counts[0])}

    def check(self, step: int, batch: Any, folder: Path) -> None:
        """Stop when too many steps in a row were skipped, and keep the batch of the last one."""
        in_a_row = int(self._counts[1])
        if in_a_row < self._bad_steps:
            return
        path = folder / f"bad-batch-rank{distributed.rank()}.pt"
        save_batch(batch, path)
        raise FloatingPointError(
            f"step {step}: the gradient norm is {float(self._norm):g}, for {in_a_row} steps in a row; "
            f"none of them was kept. The last batch is in {path}{_samples(batch)}. Look at it, then go "
            "on with --resume, perhaps with run.precision=fp32, or start again with a lower optim.lr"
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers."""
        return {"counts": self._counts.cpu(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; the weights and buffers must have been loaded already."""
        self._counts = state["counts"].to(self._counts.device)
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)


def save_batch(batch: Any, path: Path) -> None:
    """Write the fields of a batch so that `torch.load(path, weights_only=True)` reads them."""
    fields = {f.name: _plain(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    with replacing(path) as temporary:
        torch.save(fields, temporary)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _samples(batch: Any) -> str:
    keys = getattr(batch, "keys", None)
    if not keys:
        return ""
    return f" (samples {keys[0].number} to {keys[-1].number} of epoch {keys[0].epoch})"

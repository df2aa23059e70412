"""Where and in which precision a run computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "fp32", "bf16"]


def choose_device(wanted: Device) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a wanted device must be there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, found in there.items() if found))
    if not there[wanted]:
        found = ", ".join(name for name in there if there[name])
        raise ValueError(
            f"run.device is {wanted}, but this machine offers: {found}; choose one of them"
        )
    return torch.device(wanted)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context for forward passes; `auto` is bf16 on CUDA and fp32 elsewhere."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

"""Where a run computes, and what of it is kept for the way back."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from em_train.engine.distributed import local_rank

Device = Literal["auto", "cuda", "mps", "cpu"]


def choose_device(wanted: Device) -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU; a wanted device must be there.

    Of several GPUs a process takes the one with its number on this machine.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    name = next(n for n, found in there.items() if found) if wanted == "auto" else wanted
    if not there[name]:
        found = ", ".join(n for n in there if there[n])
        raise ValueError(
            f"run.device is {wanted}, but this machine offers: {found}; choose one of them"
        )
    if name != "cuda":
        return torch.device(name)
    gpus = torch.cuda.device_count()
    if local_rank() >= gpus:
        raise ValueError(
            f"process {local_rank()} of this machine has no GPU: there are {gpus}; start at most "
            f"{gpus} processes here, or set run.device=cpu"
        )
    return torch.device("cuda", local_rank())


def recompute(modules: Iterable[nn.Module]) -> None:
    """Let modules forget their activations and compute them again on the way back.

    Memory for time. Not for modules with batch norm inside, which would see every batch twice.
    """
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)

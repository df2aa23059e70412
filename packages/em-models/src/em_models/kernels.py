"""The one place that decides whether compiled operators are used.

`EM_KERNELS=0` forces the plain formulas, `EM_KERNELS=1` insists on the compiled ones; without it
they are used where `em_kernels` is installed. A library that is there but does not load is an
ImportError with the reason: silently slow would be worse.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


@cache
def kernels_in_use() -> bool:
    """Whether compiled operators serve the networks of this process."""
    choice = os.environ.get("EM_KERNELS", "")
    if choice not in ("", "0", "1"):
        raise ValueError(f"EM_KERNELS is {choice!r}; wanted 0 (plain torch), 1 (compiled) or unset")
    if choice == "0":
        return False
    installed = importlib.util.find_spec("em_kernels") is not None
    if choice == "1" and not installed:
        raise ImportError(
            "EM_KERNELS=1 asks for compiled operators, but em-kernels is not installed; "
            "install it with: pip install --no-build-isolation ./packages/em-kernels"
        )
    return installed


def compiled_patches(tensor: Tensor) -> ModuleType | None:
    """`em_kernels.patches` where it serves the device of a tensor; None where plain torch does."""
    on_gpu = tensor.device.type == "cuda"
    if tensor.device.type not in _devices() or (on_gpu and tensor.dtype == torch.float64):
        return None
    from em_kernels import patches

    return patches


@cache
def _devices() -> tuple[str, ...]:
    if not kernels_in_use():
        return ()
    from em_kernels.library import cuda_loads

    return ("cpu", "cuda") if cuda_loads() else ("cpu",)

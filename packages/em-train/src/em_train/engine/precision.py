"""In which numbers a run computes: forward passes in the chosen type, losses in fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_type(precision: Precision, device: torch.device) -> torch.dtype:
    """The type of forward passes; `auto` is bf16 where the device multiplies in it, fp16 on older CUDA,
    else fp32."""
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if precision == "auto" and device.type == "cpu" and multiplies_bf16():
        return torch.bfloat16
    return TYPES.get(precision, torch.float32)


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for it; others would emulate them, slowly."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context for forward passes."""
    kind = choose_type(precision, device)
    return nullcontext() if kind == torch.float32 else torch.autocast(device.type, dtype=kind)


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """What keeps fp16 gradients from vanishing; for other types it does nothing."""
    return torch.amp.GradScaler(
        device.type, enabled=choose_type(precision, device) == torch.float16
    )


def allow_tf32(allowed: bool) -> None:
    """Let fp32 matrix products and convolutions on CUDA round their inputs to 10 bits, or not."""
    kind = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]

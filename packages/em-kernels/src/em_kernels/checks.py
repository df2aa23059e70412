"""Checks at the public doors: on metadata alone, before any kernel starts."""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

__all__ = [
    "FLOATS",
    "check_buffer",
    "check_logits",
    "check_mask",
    "check_patch",
    "check_patches",
    "check_same",
    "check_temperature",
    "check_tokens",
    "mark_written",
    "refuse_double_backward",
]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_logits(name: str, logits: Tensor) -> None:
    """Require a floating-point (B, K, *spatial) tensor with at least two classes."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a tensor (B, K, *spatial), got {type(logits).__name__}")
    if logits.dtype not in FLOATS:
        raise TypeError(
            f"{name} must be float32, float64, bfloat16 or float16, got {logits.dtype}; cast first"
        )
    if logits.is_cuda and logits.dtype == torch.float64:
        raise TypeError(f"{name} on CUDA must be float32, bfloat16 or float16, got {logits.dtype}")
    if logits.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(
            f"{name} must be on cpu or cuda, got {logits.device}; use the plain formula"
        )
    if logits.dim() < 2:
        raise ValueError(f"{name} must be (B, K, *spatial), got shape {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError(
            f"{name} must have at least 2 classes on dim 1, got {logits.shape[1]} in shape"
            f" {tuple(logits.shape)}"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Require a positive, finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"{name} must be positive and finite, got {temperature}")


def check_mask(mask: Tensor | None, logits: Tensor) -> None:
    """Require a bool mask (B, *spatial) on the device of the logits."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, got {got}; use mask.bool()")
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(mask.shape) != wanted:
        raise ValueError(
            f"mask must be (B, *spatial) = {wanted} for logits {tuple(logits.shape)}, got"
            f" {tuple(mask.shape)}"
        )
    if mask.device != logits.device:
        raise ValueError(
            f"mask must be on the device of the logits, {logits.device}, got {mask.device}; move it"
        )


def check_same(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Require a tensor of exactly this shape, type and device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}; cast first")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, got {tensor.device}; move it")


def check_buffer(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Require a dense tensor to write into."""
    check_same(name, tensor, shape, dtype, device)
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


def check_patch(patch: tuple[int, int, int]) -> None:
    """Require three positive sizes."""
    if len(patch) != 3 or any(p < 1 for p in patch):
        raise ValueError(f"patch must be three positive sizes (pz, py, px), got {tuple(patch)}")


def check_patches(
    volume: Tensor,
    patch: tuple[int, int, int],
    dtype: torch.dtype | None,
    at_least: int = 1,
) -> torch.dtype:
    """Require a volume (B, C, Z, Y, X) that the patch divides; return the type to compute in."""
    if not isinstance(volume, Tensor):
        raise TypeError(f"volume must be a tensor, got {type(volume).__name__}")
    if volume.dtype not in (*FLOATS, torch.uint8, torch.uint16):
        raise TypeError(
            f"volume must be uint8, uint16 or floating point, got {volume.dtype}; cast first"
        )
    if volume.dim() != 5:
        raise ValueError(f"volume must be (B, C, Z, Y, X), got shape {tuple(volume.shape)}")
    check_patch(patch)
    for axis, size, p in zip("zyx", volume.shape[2:], patch, strict=True):
        if size % p:
            raise ValueError(
                f"patch {tuple(patch)} does not divide volume {tuple(volume.shape[2:])} on {axis};"
                " crop or pad the volume"
            )
    values = volume.shape[1] * patch[0] * patch[1] * patch[2]
    if values < at_least:
        raise ValueError(
            f"a patch must have at least {at_least} values, got {values} for {volume.shape[1]}"
            f" channels and patch {tuple(patch)}"
        )
    integers = not volume.is_floating_point()
    dtype = dtype or (torch.float32 if integers else volume.dtype)
    if dtype not in FLOATS:
        raise TypeError(f"dtype must be a floating-point type, got {dtype}")
    if not integers and (volume.dtype == torch.float64) != (dtype == torch.float64):
        raise TypeError(f"a volume of {volume.dtype} cannot be read as {dtype}; cast first")
    if volume.is_cuda and dtype == torch.float64:
        raise TypeError("float64 has no CUDA kernel for patches; use float32")
    return dtype


def check_tokens(tokens: Tensor | None, batch: Tensor) -> None:
    """Require int64 token numbers (B, V) on the device of the batch."""
    if tokens is None:
        return
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be an int64 tensor (B, V), got {got}")
    if tokens.dim() != 2 or tokens.shape[0] != batch.shape[0]:
        raise ValueError(
            f"tokens must be (B, V) with B = {batch.shape[0]}, got {tuple(tokens.shape)}"
        )
    if tokens.device != batch.device:
        raise ValueError(f"tokens must be on {batch.device}, got {tokens.device}; move them")


def mark_written(*tensors: Tensor | None) -> None:
    """Tell autograd that the values have changed, so that it refuses to use them as the old ones."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if tensor is not None])


def refuse_double_backward(operator: str) -> None:
    """Register that the gradient of `operator` has no gradient of its own."""
    name = operator.split("::")[1]

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"{name} has no second derivative; use the plain torch formula where a gradient of a"
            " gradient is needed (EM_KERNELS=0)"
        )

    torch.library.register_autograd(operator, refuse)

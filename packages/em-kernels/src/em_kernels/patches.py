"""Patches of a 3D volume as tokens: cut, put back, normalized, and compared with a prediction.

A masked autoencoder cuts a volume into patches, shows some of them to the encoder and compares its
prediction of others with the voxels. Here each of these reads the volume as it is stored (uint8 or
uint16 with a scale and a shift, or floating point) and touches only the patches that are asked for;
the loss builds no target.

A token is a patch, numbered with x fastest. Its D = C·pz·py·px values lie channel first,
(C, pz, py, px), or with `channels_last` as (pz, py, px, C).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from em_kernels.checks import (
    FLOATS,
    check_buffer,
    check_patch,
    check_patches,
    check_tokens,
    mark_written,
    refuse_double_backward,
)
from em_kernels.library import load_library

__all__ = [
    "PatchTargets",
    "ReconstructionSums",
    "patch_targets",
    "patchify",
    "reconstruction_sums",
    "unpatchify",
]

_ops = load_library()
Size = tuple[int, int, int]


class PatchTargets(NamedTuple):
    """Normalized patches and the moments that they were normalized by."""

    target: Tensor  # (B, V, D)
    mean: Tensor  # (B, V)
    variance: Tensor  # (B, V) over D − 1


class ReconstructionSums(NamedTuple):
    """Sums over all values of all tokens; float32, or float64 for a float64 prediction."""

    squared_error: Tensor  # ()
    values: int  # number of values


def patchify(
    volume: Tensor,  # (B, C, Z, Y, X)
    patch: Size,  # (pz, py, px)
    *,
    tokens: Tensor | None = None,  # (B, V) int64
    scale: float = 1.0,
    shift: float = 0.0,
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,  # (B, V, D)
) -> Tensor:  # (B, V, D)
    """Return patches of volume · scale + shift, all of them or those that `tokens` names.

    `dtype` is that of the volume, or float32 for an integer volume, unless given. The gradient with
    respect to a floating-point volume needs each token to be named at most once per sample. With
    `out` the patches are written there, without a gradient.

    >>> volume = torch.arange(16, dtype=torch.uint8).view(1, 1, 1, 4, 4)
    >>> patchify(volume, (1, 2, 2), scale=0.5)[0, 1]
    tensor([1.0000, 1.5000, 3.0000, 3.5000])
    """
    dtype = check_patches(volume, patch, dtype)
    check_tokens(tokens, volume)
    affine = (float(scale), float(shift))
    if out is not None:
        shape = _shape(volume, tokens, list(patch))
        check_buffer("out", out, shape, dtype, volume.device)
        with torch.no_grad():
            _ops.patchify_out(volume, tokens, list(patch), *affine, channels_last, out)
        mark_written(out)
        return out
    return _ops.patchify(volume, tokens, list(patch), *affine, channels_last, dtype)


def unpatchify(
    patches: Tensor,  # (B, V, D)
    patch: Size,  # (pz, py, px)
    size: Size,  # (Z, Y, X)
    *,
    tokens: Tensor | None = None,  # (B, V) int64
    channels_last: bool = False,
    out: Tensor | None = None,  # (B, C, Z, Y, X)
) -> Tensor:  # (B, C, Z, Y, X)
    """Put patches back into a volume of `size`; those that `tokens` leaves out are zero.

    Each token is named at most once per sample. With `out` the volume is written there, without a
    gradient.

    >>> volume = torch.randn(1, 2, 4, 4, 4)
    >>> bool((unpatchify(patchify(volume, (2, 2, 2)), (2, 2, 2), (4, 4, 4)) == volume).all())
    True
    """
    if patches.dim() != 3 or patches.dtype not in FLOATS:
        raise ValueError(
            f"patches must be floating-point (B, V, D), got {patches.dtype} {tuple(patches.shape)}"
        )
    check_patch(patch)
    voxels = patch[0] * patch[1] * patch[2]
    if patches.shape[2] == 0 or patches.shape[2] % voxels:
        raise ValueError(
            f"patches must have C · {voxels} values for patch {tuple(patch)}, got"
            f" {patches.shape[2]}"
        )
    channels = patches.shape[2] // voxels
    volume_shape = (patches.shape[0], channels, *size)
    check_patches(patches.new_empty((1,)).expand(volume_shape), patch, patches.dtype)
    check_tokens(tokens, patches)
    wanted = tokens.shape[1] if tokens is not None else _count(size, patch)
    if patches.shape[1] != wanted:
        raise ValueError(
            f"patches must have {wanted} tokens for size {tuple(size)} and patch {tuple(patch)},"
            f" got {patches.shape[1]}; name them with tokens"
        )
    if out is not None:
        check_buffer("out", out, volume_shape, patches.dtype, patches.device)
        with torch.no_grad():
            _ops.unpatchify_out(patches, tokens, list(patch), channels_last, out)
        mark_written(out)
        return out
    return _ops.unpatchify(patches, tokens, list(patch), [channels, *size], channels_last)


def patch_targets(
    volume: Tensor,  # (B, C, Z, Y, X)
    patch: Size,  # (pz, py, px)
    *,
    tokens: Tensor | None = None,  # (B, V) int64
    scale: float = 1.0,
    shift: float = 0.0,
    channels_last: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> PatchTargets:
    """Return (patch − mean) / sqrt(variance + eps) of each patch, with mean and variance.

    The variance is over D − 1 (He et al., Masked Autoencoders Are Scalable Vision Learners, 2022).
    Targets carry no gradient.
    """
    dtype = check_patches(volume, patch, dtype, at_least=2)
    check_tokens(tokens, volume)
    settings = (float(scale), float(shift), channels_last, float(eps), dtype)
    return PatchTargets(*_ops.patch_targets(volume.detach(), tokens, list(patch), *settings))


def reconstruction_sums(
    prediction: Tensor,  # (B, V, D)
    volume: Tensor,  # (B, C, Z, Y, X)
    patch: Size,  # (pz, py, px)
    *,
    tokens: Tensor | None = None,  # (B, V) int64
    scale: float = 1.0,
    shift: float = 0.0,
    channels_last: bool = False,
    normalize: bool = True,
    eps: float = 1e-6,
) -> ReconstructionSums:
    """Return Σ (prediction − target)², the target being the patches that `tokens` names.

    They are those of `patch_targets`, or of `patchify` where `normalize` is false, and are compared
    where they lie, without being built. The prediction receives a gradient, the volume none.
    """
    if prediction.dtype not in FLOATS:
        raise TypeError(f"prediction must be floating point, got {prediction.dtype}; cast first")
    check_patches(volume, patch, prediction.dtype, at_least=2 if normalize else 1)
    check_tokens(tokens, volume)
    count = tokens.shape[1] if tokens is not None else _count(volume.shape[2:], patch)
    wanted = (volume.shape[0], count, volume.shape[1] * patch[0] * patch[1] * patch[2])
    if tuple(prediction.shape) != wanted:
        raise ValueError(f"prediction must be (B, V, D) = {wanted}, got {tuple(prediction.shape)}")
    if prediction.device != volume.device:
        raise ValueError(
            f"prediction must be on {volume.device}, where the volume is, got {prediction.device}"
        )
    settings = (float(scale), float(shift), channels_last, normalize, float(eps))
    error = _ops.reconstruction_forward(prediction, volume.detach(), tokens, list(patch), *settings)
    return ReconstructionSums(error, prediction.numel())


def _count(size: Any, patch: Any) -> int:
    return (size[0] // patch[0]) * (size[1] // patch[1]) * (size[2] // patch[2])


def _shape(volume: Tensor, tokens: Tensor | None, patch: list[int]) -> tuple[int, int, int]:
    count = tokens.shape[1] if tokens is not None else _count(volume.shape[2:], patch)
    return volume.shape[0], count, volume.shape[1] * patch[0] * patch[1] * patch[2]


@torch.library.register_fake("em_kernels::patchify")
def _fake_patchify(
    volume: Tensor,
    tokens: Tensor | None,
    patch: list[int],
    scale: float,
    shift: float,
    channels_last: bool,
    dtype: torch.dtype,
) -> Tensor:
    return volume.new_empty(_shape(volume, tokens, patch), dtype=dtype)


@torch.library.register_fake("em_kernels::unpatchify")
def _fake_unpatchify(
    patches: Tensor,
    tokens: Tensor | None,
    patch: list[int],
    size: list[int],
    channels_last: bool,
) -> Tensor:
    return patches.new_empty((patches.shape[0], *size))


@torch.library.register_fake("em_kernels::patchify_out")
def _fake_patchify_out(*arguments: Any) -> None:
    """Writes into its last argument and returns nothing."""


@torch.library.register_fake("em_kernels::unpatchify_out")
def _fake_unpatchify_out(*arguments: Any) -> None:
    """Writes into its last argument and returns nothing."""


@torch.library.register_fake("em_kernels::patch_targets")
def _fake_targets(
    volume: Tensor,
    tokens: Tensor | None,
    patch: list[int],
    scale: float,
    shift: float,
    channels_last: bool,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _shape(volume, tokens, patch)
    moments = torch.float64 if dtype == torch.float64 else torch.float32
    target = volume.new_empty(shape, dtype=dtype)
    return (
        target,
        volume.new_empty(shape[:2], dtype=moments),
        volume.new_empty(shape[:2], dtype=moments),
    )


@torch.library.register_fake("em_kernels::reconstruction_forward")
def _fake_reconstruction(prediction: Tensor, *rest: Any) -> Tensor:
    double = prediction.dtype == torch.float64
    return prediction.new_empty((), dtype=torch.float64 if double else torch.float32)


@torch.library.register_fake("em_kernels::reconstruction_backward")
def _fake_reconstruction_backward(grad: Tensor, prediction: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(prediction, memory_format=torch.contiguous_format)


def _keep_patchify(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    volume, tokens, ctx.patch, ctx.scale, _, ctx.channels_last, _ = inputs
    ctx.size, ctx.dtype = list(volume.shape[1:]), volume.dtype
    ctx.save_for_backward(tokens)


def _patchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (tokens,) = ctx.saved_tensors
    volume = _ops.unpatchify(grad, tokens, ctx.patch, ctx.size, ctx.channels_last)
    return ((volume * ctx.scale).to(ctx.dtype), *[None] * 6)


def _keep_unpatchify(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    patches, tokens, ctx.patch, _, ctx.channels_last = inputs
    ctx.dtype = patches.dtype
    ctx.save_for_backward(tokens)


def _unpatchify_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (tokens,) = ctx.saved_tensors
    patches = _ops.patchify(grad, tokens, ctx.patch, 1.0, 0.0, ctx.channels_last, ctx.dtype)
    return (patches, *[None] * 4)


def _keep_reconstruction(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, volume, tokens, *ctx.settings = inputs
    ctx.save_for_backward(prediction, volume, tokens)


def _reconstruction_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_prediction = _ops.reconstruction_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (grad_prediction, *[None] * 8)


for _name, _rule, _keep in (
    ("patchify", _patchify_backward, _keep_patchify),
    ("unpatchify", _unpatchify_backward, _keep_unpatchify),
    ("reconstruction_forward", _reconstruction_backward, _keep_reconstruction),
):
    torch.library.register_autograd(f"em_kernels::{_name}", _rule, setup_context=_keep)
refuse_double_backward("em_kernels::reconstruction_backward")

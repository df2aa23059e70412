"""Sums of the entropy regularizer, straight from logits, in one pass each way.

The regularizers of dense self-supervised learning need the mean entropy of the pixels and the
mean probability of each class. Both are sums over pixels of softmax(logits / temperature), so one
pass gives both, and nothing of the size of the logits is kept for the backward pass. Where the
probabilities are needed as well, as input of a predictor, the same pass writes them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from em_kernels.checks import (
    check_buffer,
    check_logits,
    check_mask,
    check_same,
    check_temperature,
    mark_written,
    refuse_double_backward,
)
from em_kernels.library import load_library

__all__ = [
    "EntropySums",
    "entropy_gradient",
    "entropy_sums",
    "entropy_sums_and_probabilities",
    "entropy_sums_into",
    "entropy_sums_overwriting",
]

_ops = load_library()


class EntropySums(NamedTuple):
    """Sums over the pixels that count; float32, or float64 for float64 logits."""

    entropy: Tensor  # () sum of the pixels' entropies in nats
    marginal: Tensor  # (K,) or (B, K) sum of the pixels' probabilities
    pixels: Tensor  # () or (B,) number of pixels


def entropy_sums(
    logits: Tensor,  # (B, K, *spatial)
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
) -> EntropySums:
    """Return the sums of entropy and probability of p = softmax(logits / temperature, dim=1).

        entropy  = Σ_pixels −Σ_k p_k log p_k
        marginal = Σ_pixels p_k
        pixels   = Σ_pixels 1

    `mask` is bool and True where a pixel counts; a view such as `logits[..., 8:-8, 8:-8]` serves as
    a valid border. With `per_sample` the marginal and the number of pixels are given for each sample, the
    entropy stays one sum. float16 and bfloat16 logits are computed in float32. NaN and Inf
    propagate as they do through `log_softmax`.

    >>> sums = entropy_sums(torch.zeros(1, 2, 3, 3))
    >>> round(float(sums.entropy / sums.pixels), 4)  # log 2
    0.6931
    """
    _check(logits, temperature, mask)
    sums = _ops.entropy_forward(logits, mask, float(temperature), per_sample, False)
    return EntropySums(*sums[:3])


def entropy_sums_and_probabilities(
    logits: Tensor,  # (B, K, *spatial)
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
) -> tuple[EntropySums, Tensor]:
    """Return `entropy_sums` and p itself, (B, K, *spatial) in the type of the logits.

    The logits are read once in each direction. The mask decides which pixels enter the sums; p is
    given, and carries a gradient, everywhere.
    """
    _check(logits, temperature, mask)
    sums = _ops.entropy_forward(logits, mask, float(temperature), per_sample, True)
    return EntropySums(*sums[:3]), sums[3]


def entropy_sums_into(
    out: EntropySums,
    logits: Tensor,  # (B, K, *spatial)
    *,
    probabilities: Tensor | None = None,  # (B, K, *spatial)
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
) -> EntropySums:
    """Write `entropy_sums`, and p where `probabilities` is given, into given tensors; no gradient.

    `probabilities` has the type of the logits and may be the logits themselves.
    """
    _check(logits, temperature, mask)
    batch, classes = logits.shape[:2]
    dtype = _sum_dtype(logits)
    wanted = EntropySums((), (batch, classes) if per_sample else (classes,), (batch,) * per_sample)  # type: ignore[arg-type]
    for name, tensor, shape in zip(EntropySums._fields, out, wanted, strict=True):
        check_buffer(f"out.{name}", tensor, tuple(shape), dtype, logits.device)
    if probabilities is not None:
        check_same("probabilities", probabilities, tuple(logits.shape), logits.dtype, logits.device)
    with torch.no_grad():
        _ops.entropy_forward_out(logits, mask, float(temperature), per_sample, *out, probabilities)
    return out


def entropy_sums_overwriting(
    logits: Tensor,  # (B, K, *spatial)
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
) -> EntropySums:
    """Return `entropy_sums`; the backward pass writes the gradient over the logits.

    Saves the memory of the gradient, and its page faults. For logits that nothing reads after the
    backward pass of this function; autograd refuses where another operator has kept them. Eager
    mode only.
    """
    _check(logits, temperature, mask)
    return EntropySums(*_Overwriting.apply(logits, mask, float(temperature), per_sample))


def entropy_gradient(
    logits: Tensor,  # (B, K, *spatial)
    grad_entropy: Tensor,  # ()
    grad_marginal: Tensor,  # (K,) or (B, K)
    *,
    grad_probabilities: Tensor | None = None,  # (B, K, *spatial)
    temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
    out: Tensor | None = None,  # (B, K, *spatial)
) -> Tensor:
    """Return the gradient of `entropy_sums` for given gradients of its sums, without autograd.

    It is written into `out` where given, which may be the logits themselves.
    """
    _check(logits, temperature, mask)
    dtype, device = _sum_dtype(logits), logits.device
    classes = tuple(logits.shape[:2] if per_sample else logits.shape[1:2])
    check_same("grad_entropy", grad_entropy, (), dtype, device)
    check_same("grad_marginal", grad_marginal, classes, dtype, device)
    for name, tensor in (("grad_probabilities", grad_probabilities), ("out", out)):
        if tensor is not None:
            check_same(name, tensor, tuple(logits.shape), logits.dtype, device)
    arguments = (
        *(grad_entropy, grad_marginal, grad_probabilities, logits, mask),
        *(float(temperature), per_sample),
    )
    with torch.no_grad():
        if out is None:
            return _ops.entropy_backward(*arguments)
        _ops.entropy_backward_out(*arguments, out)
    mark_written(out)
    return out


def _check(logits: Tensor, temperature: float, mask: Tensor | None) -> None:
    check_logits("logits", logits)
    check_temperature("temperature", temperature)
    check_mask(mask, logits)


def _sum_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


@torch.library.register_fake("em_kernels::entropy_forward")
def _fake_forward(
    logits: Tensor,
    mask: Tensor | None,
    temperature: float,
    per_sample: bool,
    with_probabilities: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _sum_dtype(logits)
    batch, classes = logits.shape[:2]
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((batch, classes) if per_sample else (classes,), dtype=dtype),
        logits.new_empty((batch,) if per_sample else (), dtype=dtype),
        torch.empty_like(logits) if with_probabilities else logits.new_empty(0),
    )


@torch.library.register_fake("em_kernels::entropy_backward")
def _fake_backward(
    grad_entropy: Tensor,
    grad_marginal: Tensor,
    grad_probabilities: Tensor | None,
    logits: Tensor,
    mask: Tensor | None,
    temperature: float,
    per_sample: bool,
) -> Tensor:
    return torch.empty_like(logits)


@torch.library.register_fake("em_kernels::entropy_forward_out")
def _fake_forward_out(*arguments: Any) -> None:
    """Writes into its arguments and returns nothing."""


@torch.library.register_fake("em_kernels::entropy_backward_out")
def _fake_backward_out(*arguments: Any) -> None:
    """Writes into its arguments and returns nothing."""


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, mask, ctx.temperature, ctx.per_sample, ctx.with_probabilities = inputs
    ctx.save_for_backward(logits, mask)
    ctx.mark_non_differentiable(*(output[2:3] if ctx.with_probabilities else output[2:]))


def _backward(
    ctx: Any,
    grad_entropy: Tensor,
    grad_marginal: Tensor,
    _grad_pixels: Tensor,
    grad_probabilities: Tensor,
) -> tuple[Tensor | None, ...]:
    logits, mask = ctx.saved_tensors
    grad = _ops.entropy_backward(
        grad_entropy,
        grad_marginal,
        grad_probabilities if ctx.with_probabilities else None,
        logits,
        mask,
        ctx.temperature,
        ctx.per_sample,
    )
    return grad, None, None, None, None


class _Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, mask: Tensor | None, temperature: float, per_sample: bool
    ) -> tuple[Tensor, ...]:
        ctx.temperature, ctx.per_sample = temperature, per_sample
        ctx.save_for_backward(logits, mask)
        sums = _ops.entropy_forward(logits, mask, temperature, per_sample, False)
        ctx.mark_non_differentiable(sums[2])
        return tuple(sums[:3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_entropy: Tensor, grad_marginal: Tensor, _grad_pixels: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, mask = ctx.saved_tensors
        settings = (mask, ctx.temperature, ctx.per_sample)
        _ops.entropy_backward_out(grad_entropy, grad_marginal, None, logits, *settings, logits)
        mark_written(logits)
        return logits.detach(), None, None, None


torch.library.register_autograd("em_kernels::entropy_forward", _backward, setup_context=_keep)
refuse_double_backward("em_kernels::entropy_backward")

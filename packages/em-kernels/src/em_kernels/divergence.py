"""Sums of the divergence between a prediction and its target, in one pass each way.

A dense self-supervised step compares the code of a pixel with its prediction from context and
regularizes both by their entropies and marginals. All of these are sums over pixels of the same two
softmaxes, so one pass over both tensors gives them, and one pass backward gives both gradients.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from em_kernels.checks import (
    check_logits,
    check_mask,
    check_same,
    check_temperature,
    refuse_double_backward,
)
from em_kernels.library import load_library

__all__ = ["DivergenceSums", "divergence_sums"]

_ops = load_library()


class DivergenceSums(NamedTuple):
    """Sums over the pixels that count; float32, or float64 for float64 logits."""

    cross_entropy: Tensor  # () sum of −Σ_k p_k log q_k
    entropy: Tensor  # () sum of the prediction's entropies
    marginal: Tensor  # (K,) or (B, K) sum of the prediction's probabilities
    target_entropy: Tensor  # () sum of the target's entropies
    target_marginal: Tensor  # (K,) or (B, K) sum of the target's probabilities
    pixels: Tensor  # () or (B,) number of pixels


def divergence_sums(
    prediction: Tensor,  # (B, K, *spatial) logits
    target: Tensor,  # (B, K, *spatial) logits, or probabilities
    *,
    target_is_logits: bool = True,
    temperature: float = 1.0,
    target_temperature: float = 1.0,
    mask: Tensor | None = None,  # (B, *spatial)
    per_sample: bool = False,
) -> DivergenceSums:
    """Return the sums of the cross-entropy −Σ_k p_k log q_k and what regularizes p and q.

    q = softmax(prediction / temperature, dim=1). p = softmax(target / target_temperature, dim=1), or
    the target itself where `target_is_logits` is false; it is then taken as it is, without being
    normalised, and 0 · log 0 = 0 in its entropy. The mean Kullback-Leibler divergence is
    (cross_entropy − target_entropy) / pixels. Both tensors receive gradients where they require
    them; detach the target where it shall not learn. `mask` is True where a pixel counts.

    >>> logits = torch.zeros(1, 2, 3)
    >>> sums = divergence_sums(logits, logits)
    >>> bool(sums.cross_entropy == sums.entropy)
    True
    """
    check_logits("prediction", prediction)
    check_logits("target", target)
    shape = tuple(prediction.shape)
    check_same("target", target, shape, prediction.dtype, prediction.device)
    check_temperature("temperature", temperature)
    check_temperature("target_temperature", target_temperature)
    check_mask(mask, prediction)
    temperatures = (float(temperature), float(target_temperature))
    sums = _ops.divergence_forward(
        prediction, target, target_is_logits, mask, *temperatures, per_sample
    )
    return DivergenceSums(*sums)


@torch.library.register_fake("em_kernels::divergence_forward")
def _fake_forward(
    prediction: Tensor,
    target: Tensor,
    target_is_logits: bool,
    mask: Tensor | None,
    temperature: float,
    target_temperature: float,
    per_sample: bool,
) -> tuple[Tensor, ...]:
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    batch, classes = prediction.shape[:2]
    shapes: list[tuple[int, ...]] = [(), (), (classes,), (), (classes,), ()]
    if per_sample:
        shapes = [(), (), (batch, classes), (), (batch, classes), (batch,)]
    return tuple(prediction.new_empty(shape, dtype=dtype) for shape in shapes)


@torch.library.register_fake("em_kernels::divergence_backward")
def _fake_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    prediction, target = arguments[5:7]
    need_prediction, need_target = arguments[-2:]
    return (
        torch.empty_like(prediction) if need_prediction else prediction.new_empty(0, 0),
        torch.empty_like(target) if need_target else target.new_empty(0, 0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    prediction, target, ctx.target_is_logits, mask, *ctx.settings = inputs
    ctx.save_for_backward(prediction, target, mask)
    ctx.mark_non_differentiable(output[5])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    prediction, target, mask = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    both = _ops.divergence_backward(
        *grads[:5], prediction, target, ctx.target_is_logits, mask, *ctx.settings, *needed
    )
    first, second = (grad if need else None for grad, need in zip(both, needed, strict=True))
    return first, second, None, None, None, None, None


torch.library.register_autograd("em_kernels::divergence_forward", _backward, setup_context=_keep)
refuse_double_backward("em_kernels::divergence_backward")

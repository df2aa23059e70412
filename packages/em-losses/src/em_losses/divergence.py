"""Sums of the cross-entropy between a target code and its prediction, as sums that add up.

The plain formulas here are the reference; `em_kernels.divergence` computes the same in one pass over
both tensors. Every loss that compares two codes is made of these sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from em_losses.entropy import check_logits, entropy_terms, flat
from em_losses.kernels import compiled


class DivergenceSums(NamedTuple):
    """What losses between two codes p (target) and q (prediction) are made of."""

    cross_entropy: Tensor  # () Σ over pixels of −Σ_k p log q, nats
    entropy: Tensor  # () Σ over pixels of H(q)
    marginal: Tensor  # (K,) Σ over pixels of q
    target_entropy: Tensor  # () Σ over pixels of H(p)
    target_marginal: Tensor  # (K,) Σ over pixels of p
    pixels: Tensor  # () number of pixels


def divergence_sums(
    target: Tensor, logits: Tensor, *, target_is_logits: bool = False
) -> DivergenceSums:
    """Sums of cross-entropy, entropies and marginals of target p and prediction q.

    Args:
        target: (B, K, …) probabilities p, or logits of them; constant or with a gradient.
        logits: (B, K, …) of the prediction q = softmax(logits).
        target_is_logits: p = softmax(target), which saves a pass over memory.

    Range: cross_entropy from target_entropy to ∞; both marginals sum to pixels.
    """
    _check(target, logits)
    fused = compiled("divergence", logits) if target.dtype == logits.dtype else None
    if fused:
        return DivergenceSums(
            *fused.divergence_sums(logits, target, target_is_logits=target_is_logits)
        )
    return plain_divergence_sums(target, logits, target_is_logits=target_is_logits)


def plain_divergence_sums(
    target: Tensor, logits: Tensor, *, target_is_logits: bool = False
) -> DivergenceSums:
    """`divergence_sums` in plain torch, the reference for the compiled operator."""
    _check(target, logits)
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_q = flat(logits.to(kind).log_softmax(1))  # (B, K, N)
    p = flat(target.to(kind))
    p, log_p = (p.softmax(1), p.log_softmax(1)) if target_is_logits else (p, None)
    q = log_q.exp()
    return DivergenceSums(
        cross_entropy=-(p * log_q).sum(),
        entropy=-(q * log_q).sum(),
        marginal=q.sum((0, 2)),
        target_entropy=entropy_terms(p).sum() if log_p is None else -(p * log_p).sum(),
        target_marginal=p.sum((0, 2)),
        pixels=torch.full((), p.shape[0] * p.shape[2], dtype=kind, device=p.device),
    )


def _check(target: Tensor, logits: Tensor) -> None:
    if target.shape != logits.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, logits {tuple(logits.shape)}; wanted the same"
        )
    check_logits(logits, 1.0, None)

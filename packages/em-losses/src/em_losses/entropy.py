"""Entropy of per-pixel softmax codes, as sums that add up over batches and ranks.

The plain formulas here are the reference; `em_kernels.entropy` computes the same in one pass over
the logits. Sums, and never the entropy of a mean, leave this module's `entropy_sums`: sums of
several ranks can be added, entropies of means cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from em_losses.kernels import compiled

Reduce = Callable[[Tensor], Tensor]


def identity(sums: Tensor) -> Tensor:
    """No reduction: the sums of one process are those of the whole batch."""
    return sums


def wide(values: Tensor) -> Tensor:
    """In float32 or float64: float16 counts no further than 65504."""
    return values if values.dtype == torch.float64 else values.float()


class EntropySums(NamedTuple):
    """What entropy regularizers are made of."""

    entropy: Tensor  # () Σ over pixels of H(p), nats
    marginal: Tensor  # (K,) Σ over pixels of p; (B, K) per sample
    pixels: Tensor  # () number of pixels; (B,) per sample


def entropy_sums(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    per_sample: bool = False,
) -> EntropySums:
    """Sum of pixel entropies, sum of p per class, and number of pixels.

    With p = softmax(logits / temperature) over dimension 1 and H(p) = −Σ p log p in nats.

    Args:
        logits: (B, K, …) with any number of spatial dimensions.
        temperature: divides the logits; > 0.
        mask: (B, …) bool, True where a pixel counts.
        per_sample: keep the marginal and the number of pixels of each sample apart.

    Range: entropy in [0, pixels · log K], marginal sums to pixels.

    >>> sums = entropy_sums(torch.zeros(2, 4, 8, 8))
    >>> round(float(sums.entropy / sums.pixels), 4)  # log 4
    1.3863
    """
    fused = compiled("entropy", logits)
    sums = fused.entropy_sums if fused else plain_entropy_sums
    return EntropySums(*sums(logits, temperature=temperature, mask=mask, per_sample=per_sample))


def entropy_sums_and_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    per_sample: bool = False,
) -> tuple[EntropySums, Tensor]:
    """`entropy_sums` and p itself, (B, K, …) in the type of the logits.

    Where p is needed anyway, as input of a predictor, the compiled operator reads the logits once.
    The mask decides which pixels enter the sums; p is given everywhere.
    """
    settings = {"temperature": temperature, "mask": mask, "per_sample": per_sample}
    fused = compiled("entropy", logits)
    if fused:
        sums, p = fused.entropy_sums_and_probabilities(logits, **settings)
        return EntropySums(*sums), p
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32  # halves overflow
    p = (logits.to(kind) / temperature).softmax(1).to(logits.dtype)
    return plain_entropy_sums(logits, **settings), p  # type: ignore[arg-type]


def plain_entropy_sums(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    per_sample: bool = False,
) -> EntropySums:
    """`entropy_sums` in plain torch, the reference for the compiled operator."""
    check_logits(logits, temperature, mask)
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_p = flat((logits.to(kind) / temperature).log_softmax(1))  # (B, K, N)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1)  # (B, N)
    if mask is not None:
        keep = flat(mask[:, None])[:, 0]  # (B, N)
        entropy = torch.where(keep, entropy, 0)
        p = torch.where(keep[:, None], p, 0)
        pixels = keep.sum(1).to(kind)  # (B,)
    else:
        pixels = torch.full((p.shape[0],), p.shape[2], dtype=kind, device=p.device)
    marginal = p.sum(2)  # (B, K)
    if not per_sample:
        marginal, pixels = marginal.sum(0), pixels.sum()
    return EntropySums(entropy.sum(), marginal, pixels)


def check_logits(logits: Tensor, temperature: float, mask: Tensor | None) -> None:
    """Refuse shapes and types that cannot be meant."""
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (B, K, …) with K ≥ 2 classes"
        )
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}; wanted a floating-point type")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; wanted a number > 0")
    if mask is not None:
        wanted = (logits.shape[0], *logits.shape[2:])
        if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; wanted bool of shape {wanted}"
            )


def flat(maps: Tensor) -> Tensor:
    """(B, K, …) -> (B, K, N), with N = 1 where there are no spatial dimensions."""
    return maps.reshape(*maps.shape[:2], math.prod(maps.shape[2:]))


def entropy_terms(p: Tensor) -> Tensor:
    """−p log p of each probability; 0, with a gradient of 0 instead of infinity, where p is 0."""
    return torch.special.entr(p.clamp(min=torch.finfo(p.dtype).tiny))


def entropy_of_mean(sums: EntropySums, *, reduce: Reduce = identity) -> Tensor:
    """Entropy H(p̄) of the mean code, in nats: () or, from sums per sample, (B,).

    Range [0, log K]. `reduce` adds up sums over ranks, so that the result is that of the global
    batch; it must be differentiable.

    >>> float(entropy_of_mean(entropy_sums(torch.eye(2).mul(50).view(2, 2, 1))))  # doctest: +ELLIPSIS
    0.693...
    """
    mean = reduce(sums.marginal) / reduce(sums.pixels)[..., None]
    return entropy_terms(mean).sum(-1)


def mean_entropy(sums: EntropySums, *, reduce: Reduce = identity) -> Tensor:
    """Mean entropy of the pixels' codes, in nats: (). Range [0, log K]."""
    return reduce(sums.entropy) / reduce(sums.pixels).sum()

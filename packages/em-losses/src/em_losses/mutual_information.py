"""Prediction of codes from codes: how much one says about the other, and what prevents collapse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from em_losses.divergence import divergence_sums
from em_losses.entropy import (
    EntropySums,
    Reduce,
    entropy_of_mean,
    entropy_terms,
    flat,
    identity,
    mean_entropy,
)


def cross_entropy(
    target: Tensor,
    logits: Tensor,
    *,
    target_is_logits: bool = False,
    reduce: Reduce = identity,
) -> Tensor:
    """Mean over pixels of CE(p, q) = −Σ p log q, in nats: ().

    Args:
        target: (B, K, …) probabilities p, constant or with a gradient.
        logits: (B, K, …) of the prediction q = softmax(logits).
        target_is_logits: p = softmax(target), which is faster than giving p.
        reduce: adds up over ranks.

    Range [H(p), ∞). Minus the entropy of the mean target, −(CE − H̄) is a lower bound on the mutual
    information between target and context: `information_bound`.

    >>> p = torch.tensor([[[1.0], [0.0]]])
    >>> float(cross_entropy(p, torch.zeros(1, 2, 1)))  # doctest: +ELLIPSIS
    0.693...
    """
    sums = divergence_sums(target, logits, target_is_logits=target_is_logits)
    return reduce(sums.cross_entropy) / reduce(sums.pixels)


def symmetric_cross_entropy(first: Tensor, second: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Mean over pixels of ½ [CE(p, q) + CE(q, p)], both given as logits (B, K, …), in nats: ().

    For two views of the same pixels, of which neither is the target. Range
    [½ (H(p) + H(q)), ∞), least where the views agree and are certain.
    """
    there = divergence_sums(first, second, target_is_logits=True)
    back = divergence_sums(second, first, target_is_logits=True)
    return reduce(there.cross_entropy + back.cross_entropy) / (2 * reduce(there.pixels))


def information_bound(
    target: Tensor,
    logits: Tensor,
    *,
    target_is_logits: bool = False,
    reduce: Reduce = identity,
) -> Tensor:
    """H(p̄) − CE(p, q): what the prediction is known to say about the target, in nats: ().

    A lower bound on the mutual information between the target code and the context of the prediction
    (Barber & Agakov 2003, The IM Algorithm), tight where q is the true conditional. The loss
    CE − H̄ is minus this number, and has no free weight. Arguments as `cross_entropy`.

    Range (−∞, log K].

    >>> apart = 50 * torch.eye(4)[None]  # four pixels of four classes
    >>> float(information_bound(apart, apart, target_is_logits=True))  # doctest: +ELLIPSIS
    1.386...
    """
    sums = divergence_sums(target, logits, target_is_logits=target_is_logits)
    pixels = reduce(sums.pixels)
    spread = entropy_terms(reduce(sums.target_marginal) / pixels).sum()
    return spread - reduce(sums.cross_entropy) / pixels


def gain_over_mean(
    target: Tensor, logits: Tensor, mean_logits: Tensor, *, reduce: Reduce = identity
) -> Tensor:
    """CE(target, mean of the context) − CE(target, prediction), in nats: ().

    What a prediction says beyond the mean code of its context (`SlicePredictor.from_mean`). A gain of
    0 means that nothing was predicted, only copied. All are (B, K, …), the target probabilities.
    """
    copied = cross_entropy(target, mean_logits, reduce=reduce)
    return copied - cross_entropy(target, logits, reduce=reduce)


def entropy_floor(entropy_of_mean: Tensor, *, floor: float) -> Tensor:
    """relu(floor − H̄): pushes the mean code away from few classes, and lets go above the floor.

    Range [0, floor]. Unlike maximal entropy it does not force classes of equal size.

    >>> float(entropy_floor(torch.tensor(3.0), floor=3.4))  # doctest: +ELLIPSIS
    0.400...
    """
    return torch.relu(floor - entropy_of_mean)


def diversity(
    sums: EntropySums,
    *,
    classes_at_least: float = 8.0,
    sharpen_weight: float = 1.0,
    reduce: Reduce = identity,
) -> Tensor:
    """DiversityReg: relu(H* − H(p̄)) + weight · mean H(p), with H* = log classes_at_least: ().

    A floor under the entropy of the mean code, and certain pixels above it. Range [0, ∞).

    Args:
        sums: of `entropy_sums`, over the batch and not per sample.
        classes_at_least: number of classes of equal size that the floor stands for.
        sharpen_weight: weight of the mean entropy of the pixels.
        reduce: adds up over ranks.
    """
    floor = entropy_floor(entropy_of_mean(sums, reduce=reduce), floor=math.log(classes_at_least))
    return floor + sharpen_weight * mean_entropy(sums, reduce=reduce)


def iic(
    first: Tensor,
    second: Tensor,
    *,
    marginal_weight: float = 1.0,
    reduce: Reduce = identity,
) -> Tensor:
    """Minus the mutual information of two codes of the same pixels, from their joint table: ().

    P = mean over pixels of ½ (p qᵀ + q pᵀ), (K, K); the loss is Σ P (λ log P_i + λ log P_j − log P)
    with marginals P_i, P_j. Ji et al. 2019, Invariant Information Clustering.

    Args:
        first, second: (B, K, …) probabilities p and q.
        marginal_weight: λ; above 1 it asks for more equal classes.
        reduce: adds up over ranks.

    Range [−log K, 0] for λ = 1.

    >>> apart = torch.eye(4)[None]
    >>> float(iic(apart, apart))  # doctest: +ELLIPSIS
    -1.386...
    """
    if first.shape != second.shape:
        raise ValueError(
            f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}; wanted the same"
        )
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    with torch.autocast(first.device.type, enabled=False):
        p, q = flat(first.to(kind)), flat(second.to(kind))  # (B, K, N)
        joint = reduce((p @ q.mT).sum(0))  # (K, K)
    joint = (joint + joint.T) / (2 * joint.sum())
    tiny = torch.finfo(kind).tiny  # log 0 has no gradient
    marginal = joint.sum(0).clamp(min=tiny).log()  # (K,)
    pointwise = marginal_weight * (marginal[:, None] + marginal) - joint.clamp(min=tiny).log()
    return (joint * pointwise).sum()

"""Prediction of codes from codes: cross-entropy, and the losses that keep it from collapsing."""

from __future__ import annotations

import torch
from torch import Tensor

from em_losses.entropy import Reduce, identity
from em_losses.kernels import compiled


def cross_entropy(target: Tensor, logits: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Mean over pixels of CE(p, q) = −Σ p log q, in nats: ().

    Args:
        target: (B, K, …) probabilities p, constant or with a gradient.
        logits: (B, K, …) of the prediction q = softmax(logits).

    Range [H(p), ∞). Minus the entropy of the mean target, −(CE − H̄) is a lower bound on the mutual
    information between target and context (Barber & Agakov 2003, The IM algorithm).

    >>> p = torch.tensor([[[1.0], [0.0]]])
    >>> float(cross_entropy(p, torch.zeros(1, 2, 1)))  # doctest: +ELLIPSIS
    0.693...
    """
    if target.shape != logits.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, logits {tuple(logits.shape)}; wanted the same"
        )
    fused = compiled("divergence", logits)
    if fused:
        sums = fused.divergence_sums(logits, target, target_is_logits=False)
        return reduce(sums.cross_entropy) / reduce(sums.pixels)
    total = -(target * logits.log_softmax(1)).sum()
    pixels = target.shape[0] * target[0, 0].numel()
    return reduce(total) / reduce(total.new_tensor(float(pixels)))


def entropy_floor(entropy_of_mean: Tensor, *, floor: float) -> Tensor:
    """relu(floor − H̄): pushes the mean code away from few classes, and lets go above the floor.

    Range [0, floor]. Unlike maximal entropy it does not force classes of equal size.

    >>> float(entropy_floor(torch.tensor(3.0), floor=3.4))  # doctest: +ELLIPSIS
    0.400...
    """
    return torch.relu(floor - entropy_of_mean)

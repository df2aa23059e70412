"""The loss of segmentation as a run asks for it: which kind, with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from em_losses import (
    SegmentationSums,
    binary_sums,
    boundary_weight,
    dice_loss,
    exclusive_sums,
    mean_cross_entropy,
)
from em_losses.entropy import Reduce, identity
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked for: cross-entropy + Dice."""

    kind: Literal["binary", "softmax"] = "binary"
    """Loss: binary (a yes or no for every class) or softmax (one class, or the rest, for every
    pixel)."""
    class_weights: tuple[float, ...] = ()
    """Weight of every class (softmax: of the rest first). Without them, all weigh the same."""
    focal: NonNegativeFloat = 0.0
    """Exponent of the focal loss, 1 or more; 0: plain cross-entropy."""
    boundary_weight: PositiveFloat = 1.0
    """Weight of the pixels near a boundary in the cross-entropy."""
    boundary_vx: PositiveInt = 2
    """Distance from a boundary, in pixels, up to which loss.boundary_weight counts."""

    @property
    def rest(self) -> bool:
        """Whether the first logit is that of the rest."""
        return self.kind == "softmax"


def sums_of(logits: Tensor, truth: Tensor, known: Tensor, config: LossConfig) -> SegmentationSums:
    """What the loss is made of: logits (B, C, …), or with the rest first; truth, known (B, C, …) bool."""
    weight = None
    if config.boundary_weight != 1:
        weight = boundary_weight(
            truth, valid=known, radius_vx=config.boundary_vx, weight=config.boundary_weight
        )
    if not config.rest:
        return binary_sums(logits, truth, valid=known, weight=weight, focal=config.focal)
    numbers = torch.arange(1, truth.shape[1] + 1, device=truth.device)
    target = (truth * numbers.view(1, -1, *[1] * (truth.dim() - 2))).amax(1)
    weight = None if weight is None else weight.amax(1)
    return exclusive_sums(logits, target, valid=known.all(1), weight=weight, focal=config.focal)


def terms_of(
    sums: SegmentationSums, config: LossConfig, reduce: Reduce = identity
) -> dict[str, Tensor]:
    """The two parts of the loss: () each."""
    weights = config.class_weights or None
    return {
        "cross_entropy": mean_cross_entropy(
            sums, class_weights=weights, pooled=config.rest, reduce=reduce
        ),
        "dice_loss": dice_loss(sums, class_weights=weights, reduce=reduce),
    }


def probabilities(logits: Tensor, config: LossConfig, dim: int = 0) -> Tensor:
    """Probabilities of the classes, without the rest: (C, …)."""
    if not config.rest:
        return logits.sigmoid()
    p = logits.softmax(dim)
    return p.narrow(dim, 1, p.shape[dim] - 1)

"""Losses for supervised segmentation: cross-entropy and Dice, as sums that add up over ranks.

    binary_sums or exclusive_sums -> SegmentationSums -> mean_cross_entropy + dice_loss

Sums, and never the Dice of a part, leave the first two: Dice is taken over the global batch, so that
a patch without a class is judged together with those that have it. Pixels that nobody labelled are
left out by `valid` and have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from em_losses.entropy import Reduce, flat, identity, wide


class SegmentationSums(NamedTuple):
    """What segmentation losses are made of, for each class: (C,) each."""

    cross_entropy: Tensor  # Σ over valid pixels of the weighted cross-entropy, nats
    pixels: Tensor  # Σ of the weights of valid pixels; 0 for a class that nobody labelled
    overlap: Tensor  # Σ of p · y
    predicted: Tensor  # Σ of p
    true: Tensor  # Σ of y


def binary_sums(
    logits: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    focal: float = 0.0,
) -> SegmentationSums:
    """Sums for classes that each have a yes or no of their own, with p = sigmoid(logits).

    Cross-entropy of a pixel: −(1 − p_y)^focal · log p_y, with p_y the probability of its label.

    Args:
        logits: (B, C, …) with any number of spatial dimensions.
        target: (B, C, …) bool or numbers in [0, 1], y.
        valid: (B, C, …) or (B, 1, …) bool, True where a pixel is labelled.
        weight: (B, C, …) or (B, 1, …) ≥ 0, of each pixel's cross-entropy; `boundary_weight` makes one.
        focal: 0 is plain cross-entropy; 2 in Lin et al. 2017, Focal Loss for Dense Object Detection.

    >>> sums = binary_sums(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
    >>> round(float(sums.cross_entropy / sums.pixels), 4), float(sums.overlap)  # log 2
    (0.6931, 8.0)
    """
    _check(logits, focal)
    if target.shape != logits.shape:
        raise ValueError(
            f"target has shape {tuple(target.shape)}, logits {tuple(logits.shape)}; wanted the same"
        )
    for name, mask in (("valid", valid), ("weight", weight)):
        _check_mask(name, mask, logits)
    logits = wide(logits)
    y = target.to(logits.dtype)
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    if focal:
        entropy = entropy * (p + y - 2 * p * y).pow(focal)  # 1 − p_y, for soft labels in between
    if valid is not None:
        seen = valid.to(logits.dtype)
        p, y = p * seen, y * seen
        weight = seen if weight is None else weight * seen
    return SegmentationSums(
        _per_class(entropy if weight is None else entropy * weight),
        _count(weight, logits),
        _per_class(p * y),
        _per_class(p),
        _per_class(y),
    )


def exclusive_sums(
    logits: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    focal: float = 0.0,
) -> SegmentationSums:
    """Sums for classes of which each pixel has one, with p = softmax(logits).

    The cross-entropy of a pixel, as in `binary_sums`, counts for its true class.

    Args:
        logits: (B, C, …) with any number of spatial dimensions, C ≥ 2.
        target: (B, …) integers in 0 … C − 1; where not valid, anything in that range.
        valid: (B, …) bool, True where a pixel is labelled.
        weight: (B, …) ≥ 0, of each pixel's cross-entropy.
        focal: see `binary_sums`.

    >>> sums = exclusive_sums(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    >>> sums.overlap.tolist(), sums.true.tolist()
    ([1.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0])
    """
    _check(logits, focal)
    if logits.shape[1] < 2:
        raise ValueError(
            "logits have 1 class; exclusive classes are at least 2, the rest among them"
        )
    wanted = (logits.shape[0], *logits.shape[2:])
    for name, one in (("target", target), ("valid", valid), ("weight", weight)):
        if one is not None and tuple(one.shape) != wanted:
            raise ValueError(f"{name} has shape {tuple(one.shape)}; wanted {wanted}")
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target is {target.dtype}; wanted integers")
    logits, classes = wide(logits), logits.shape[1]
    target = target.long()
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    chosen = log_p.gather(1, target[:, None])[:, 0]  # (B, …) log p_y
    entropy = -chosen
    if focal:
        entropy = entropy * (-torch.expm1(chosen)).pow(focal)
    own = chosen.exp()  # (B, …) p_y
    seen = torch.ones_like(own) if valid is None else valid.to(own.dtype)
    p = p if valid is None else p * seen[:, None]
    counted = seen if weight is None else seen * weight

    def by_class(values: Tensor) -> Tensor:
        sums = torch.zeros(classes, dtype=values.dtype, device=values.device)
        return sums.index_add(0, target.flatten(), values.flatten())

    return SegmentationSums(
        by_class(entropy * counted),
        by_class(counted),
        by_class(own * seen),
        _per_class(p),
        by_class(seen),
    )


def mean_cross_entropy(
    sums: SegmentationSums,
    *,
    class_weights: Sequence[float] | Tensor | None = None,
    pooled: bool = False,
    reduce: Reduce = identity,
) -> Tensor:
    """Mean cross-entropy of the valid pixels, averaged over the classes, in nats: (). Range [0, ∞).

    Classes that the global batch has no valid pixel of are left out of the average; with none at all
    the loss is 0. With `pooled`, pixels of all classes are averaged together, as is usual for
    exclusive classes, where the pixels of a class are those that are truly its own.
    """
    entropy, pixels = reduce(sums.cross_entropy), reduce(sums.pixels)
    weights = _weights(class_weights, entropy)
    if pooled:
        return (weights * entropy).sum() / _not_zero((weights * pixels).sum())
    weights = weights * (pixels > 0)
    return (weights * entropy / _not_zero(pixels)).sum() / _not_zero(weights.sum())


def dice_loss(
    sums: SegmentationSums,
    *,
    class_weights: Sequence[float] | Tensor | None = None,
    smooth: float = 1.0,
    reduce: Reduce = identity,
) -> Tensor:
    """1 − (2 Σ p·y + s) / (Σ p + Σ y + s), averaged over the classes: (). Range [0, 1).

    The sums run over the global batch (Milletari et al. 2016, V-Net, without squares). `smooth`, s in
    pixels, keeps a class that is not there from asking for more than an empty prediction. Classes
    without a valid pixel, and with none predicted, are left out.
    """
    overlap, predicted, true = (reduce(one) for one in sums[2:])
    weights = _weights(class_weights, overlap) * (predicted + true > 0)
    loss = 1 - (2 * overlap + smooth) / (predicted + true + smooth)
    return (weights * loss).sum() / _not_zero(weights.sum())


def bce_dice(
    logits: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    focal: float = 0.0,
    reduce: Reduce = identity,
) -> Tensor:
    """Binary cross-entropy plus Dice, each averaged over the classes: (). See `binary_sums`.

    >>> float(bce_dice(torch.full((1, 1, 8, 8), 30.0), torch.ones(1, 1, 8, 8))) < 1e-6
    True
    """
    sums = binary_sums(logits, target, valid=valid, weight=weight, focal=focal)
    entropy = mean_cross_entropy(sums, class_weights=class_weights, reduce=reduce)
    return entropy + dice_loss(sums, class_weights=class_weights, reduce=reduce)


def softmax_dice(
    logits: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    focal: float = 0.0,
    reduce: Reduce = identity,
) -> Tensor:
    """Cross-entropy of the softmax plus Dice averaged over the classes: (). See `exclusive_sums`."""
    sums = exclusive_sums(logits, target, valid=valid, weight=weight, focal=focal)
    entropy = mean_cross_entropy(sums, class_weights=class_weights, pooled=True, reduce=reduce)
    return entropy + dice_loss(sums, class_weights=class_weights, reduce=reduce)


def boundary_weight(
    target: Tensor, *, valid: Tensor | None = None, radius_vx: int = 2, weight: float = 5.0
) -> Tensor:
    """Weights of pixels: `weight` where a class and its absence lie within the radius, 1 elsewhere.

    Distance is the larger of those along the axes (a square, a cube). What is not valid is neither.

    Args:
        target: (B, C, Y, X) or (B, C, Z, Y, X), not 0 where a pixel is of the class.
        valid: bool of the same shape, or with one channel.

    >>> boundary_weight(torch.tensor([[[[0, 0, 0, 1, 1, 1]]]]), radius_vx=1).flatten().tolist()
    [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]
    """
    if target.dim() not in (4, 5):
        raise ValueError(
            f"target has shape {tuple(target.shape)}; wanted (B, C, Y, X) or (B, C, Z, Y, X)"
        )
    if radius_vx < 1 or weight < 0:
        raise ValueError(f"radius_vx is {radius_vx}, weight {weight:g}; wanted ≥ 1 and ≥ 0")
    pool = F.max_pool2d if target.dim() == 4 else F.max_pool3d
    inside = target != 0
    near = [inside, ~inside] if valid is None else [inside & valid, ~inside & valid]
    size = 2 * radius_vx + 1
    first, second = (pool(one.float(), size, 1, radius_vx) for one in near)
    return 1 + (weight - 1) * first * second


def _per_class(values: Tensor) -> Tensor:
    """(B, C, …) -> (C,)."""
    return flat(values).sum((0, 2))


def _count(weight: Tensor | None, logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    if weight is None:
        return logits.new_full((classes,), logits.numel() / max(1, classes))
    return _per_class(weight.to(logits.dtype)).expand(classes)


def _weights(class_weights: Sequence[float] | Tensor | None, like: Tensor) -> Tensor:
    if class_weights is None:
        return torch.ones_like(like)
    if len(class_weights) != len(like):
        raise ValueError(
            f"{len(class_weights)} class weights for {len(like)} classes; wanted one each"
        )
    return torch.as_tensor(class_weights, dtype=like.dtype, device=like.device)


def _not_zero(total: Tensor) -> Tensor:
    """A divisor: what it divides is 0 where it is 0."""
    return torch.where(total > 0, total, 1)


def _check(logits: Tensor, focal: float) -> None:
    if logits.dim() < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits have shape {tuple(logits.shape)}; wanted (B, C, …)")
    if not logits.is_floating_point():
        raise TypeError(f"logits are {logits.dtype}; wanted a floating-point type")
    if not (focal == 0 or focal >= 1):  # between, the gradient of a perfect pixel is infinite
        raise ValueError(f"focal is {focal}; wanted 0, for none, or at least 1")


def _check_mask(name: str, mask: Tensor | None, logits: Tensor) -> None:
    if mask is None:
        return
    shape = tuple(mask.shape)
    if (
        len(shape) != logits.dim()
        or shape[1] not in (1, logits.shape[1])
        or ((shape[0], *shape[2:]) != (logits.shape[0], *logits.shape[2:]))
    ):
        raise ValueError(
            f"{name} has shape {shape}; wanted {tuple(logits.shape)}, or 1 instead of "
            f"{logits.shape[1]} channels"
        )
    if name == "valid" and mask.dtype != torch.bool:
        raise TypeError(f"valid is {mask.dtype}; wanted bool")

"""Codes of the same place in several samples or views: shall they differ, shall they agree?

Neither can tell content from position: a code of position alone turns with the image, and a mosaic
that differs between samples is as varied as tissue. They are here to repeat what was published.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from em_losses.entropy import Reduce, identity, wide


def cross_sample_variance(probabilities: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Mean over places of Σ_k Var over samples of p_k: ().

    Nearly 0 where all samples have the same code at the same place of the crop, as stripes of
    position have. Subtract it from the loss, or push it up.

    Args:
        probabilities: (B, K, …), crops of one size; the variance is over B, of all ranks.
        reduce: adds up over ranks.

    Range [0, 1 − 1 / min(B, K)].

    >>> float(cross_sample_variance(torch.eye(4)[:, :, None]))
    0.75
    """
    samples, p = len(probabilities), wide(probabilities)
    moments = torch.stack([p.sum(0), p.square().sum(0)])  # (2, K, …)
    count = reduce(moments.new_tensor(float(samples)))
    mean, square = reduce(moments) / count
    return (square - mean.square()).sum(0).mean()


def equivariance(
    codes: Tensor,
    codes_of_turned: Tensor,
    *,
    turn: Callable[[Tensor], Tensor],
    reduce: Reduce = identity,
) -> Tensor:
    """Mean over pixels of |turn(f(x)) − f(turn(x))|², for codes f: ().

    Args:
        codes: (B, K, …) of the images as they are.
        codes_of_turned: (B, K, …) of the images after `turn`.
        turn: the geometric change itself, for maps (B, K, …).
        reduce: adds up over ranks.

    Range [0, 2] for probabilities.

    >>> codes = torch.rand(1, 3, 4, 4)
    >>> float(equivariance(codes, codes.rot90(1, (2, 3)), turn=lambda x: x.rot90(1, (2, 3))))
    0.0
    """
    turned = turn(codes)
    if turned.shape != codes_of_turned.shape:
        raise ValueError(
            f"turned codes have shape {tuple(turned.shape)}, codes of the turned images "
            f"{tuple(codes_of_turned.shape)}; wanted the same"
        )
    turned = wide(turned)
    total = (turned - wide(codes_of_turned)).square().sum()
    pixels = turned.new_tensor(float(turned.shape[0] * turned[0, 0].numel()))
    return reduce(total) / reduce(pixels)

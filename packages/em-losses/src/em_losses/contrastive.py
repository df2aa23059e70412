"""InfoNCE: a pixel's two embeddings must find each other among those of other pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from em_losses.entropy import Reduce, identity

# exp(−2·40) is still a normal float32, so sharpness up to this needs no running maximum.
SAFE_SHARPNESS = 40.0


def info_nce(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float = 0.1,
    symmetric: bool = True,
    gather: Callable[[Tensor], Tensor] = identity,
    reduce: Reduce = identity,
) -> Tensor:
    """Mean over pixels of −log softmax_j(cos(first_i, second_j) / τ) at j = i, in nats: ().

    Args:
        first, second: (M, D) embeddings of the same M pixels; `pick` takes them from maps.
        temperature: τ > 0.
        symmetric: the mean of both ways, first among second and second among first.
        gather: appends the vectors of the other ranks, (M, D) -> (all M, D), with gradient; the
            pixels of all ranks are then each other's negatives.
        reduce: adds up over ranks.

    Range [0, ∞), log M for embeddings that say nothing. van den Oord et al. 2018, Representation
    Learning with Contrastive Predictive Coding; the symmetric form of Radford et al. 2021, CLIP.

    >>> same = torch.eye(4)
    >>> float(info_nce(same, same)) < 1e-3
    True
    >>> float(info_nce(torch.ones(4, 2), torch.ones(4, 2)))  # doctest: +ELLIPSIS
    1.386...
    """
    if first.shape != second.shape or first.dim() != 2:
        raise ValueError(
            f"first has shape {tuple(first.shape)}, second {tuple(second.shape)}; wanted (M, D) twice"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; wanted a number > 0")
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    sharpness = 1 / temperature
    with torch.autocast(first.device.type, enabled=False):  # logits of 10 have 3 digits in bf16
        first = F.normalize(first.to(kind), dim=1) * sharpness
        second = F.normalize(second.to(kind), dim=1)
        own = (first * second).sum(1)  # (M,)
        logits = first @ gather(second).T  # (M, all M)
        if not symmetric:
            (among,) = _log_sums(logits, sharpness, 1)
        else:
            if gather is identity:
                there, back = _log_sums(logits, sharpness, 1, 0)
            else:
                (there,) = _log_sums(logits, sharpness, 1)
                (back,) = _log_sums(gather(first) @ second.T, sharpness, 0)
            among = (there + back) / 2
    return reduce((among - own).sum()) / reduce(own.new_tensor(float(len(own))))


def _log_sums(logits: Tensor, bound: float, *dims: int) -> list[Tensor]:
    """log Σ exp of logits in [−bound, bound], along each of `dims`.

    The exponentials are most of the time that InfoNCE takes; both directions share them.
    """
    if bound > SAFE_SHARPNESS:
        return [logits.logsumexp(dim) for dim in dims]
    powers = (logits - bound).exp()
    return [powers.sum(dim).log() + bound for dim in dims]

"""What is read from the features of a place: an embedding, and logits over classes."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Head = Literal["cosine", "linear"]


class DenseCodes(NamedTuple):
    """What an encoder says about every place."""

    logits: Tensor  # (B, K, Y', X')
    embedding: Tensor  # (B, E, Y', X'), unit length
    raw: Tensor  # (B, E, Y', X'), before it is brought to unit length


def read_codes(
    raw: Tensor,
    prototypes: Tensor,
    *,
    sharpness: float,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
) -> DenseCodes:
    """Codes of raw embeddings (B, E, Y, X) by prototypes (K, E).

    Without a bias the logits are sharpness × cosine: no class can grow by the length of its
    prototype alone. An offset (K,), which is never trained, is added to them. With a bias the head
    is linear.
    """
    embedding = F.normalize(raw, dim=1)
    if bias is None:
        directions = sharpness * F.normalize(prototypes, dim=1)[..., None, None]
        return DenseCodes(F.conv2d(embedding, directions, offset), embedding, raw)
    return DenseCodes(F.conv2d(raw, prototypes[..., None, None], bias), embedding, raw)


@torch.no_grad()
def stretch(embed: nn.Conv2d, norm: _BatchNorm, by: Tensor) -> None:
    """Let a convolution and the norm after it give `by` (E, E) times what they gave in evaluation."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    embed.weight.copy_(torch.einsum("oe,eiyx->oiyx", by * scale, embed.weight))
    norm.running_mean.copy_(by @ (norm.running_mean * scale))
    norm.running_var.fill_(1 - norm.eps)


def check_head(classes: int, embedding: int, head: str, sharpness: float) -> None:
    """Refuse settings of a head that cannot be meant."""
    if classes < 2:
        raise ValueError(f"classes is {classes}; wanted at least 2")
    if embedding < 1:
        raise ValueError(f"embedding is {embedding}; wanted at least 1 channel")
    if head not in ("cosine", "linear"):
        raise ValueError(f"head is {head!r}; wanted cosine or linear")
    if not 0 < sharpness < math.inf:
        raise ValueError(f"sharpness is {sharpness}; wanted a number > 0")

"""Losses of a network and of the discriminator that judges what it made.

    discriminator_loss + weight · gradient_penalty        generator_loss

Scores are those of patches, or of whole images: any shape, high where an image looks real.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from em_losses.entropy import Reduce, identity, wide

Kind = Literal["least-squares", "hinge"]
KINDS: tuple[Kind, ...] = ("least-squares", "hinge")


def discriminator_loss(
    real: Tensor, fake: Tensor, *, kind: Kind = "least-squares", reduce: Reduce = identity
) -> Tensor:
    """How far scores r of real images and f of made ones are from being told apart: ().

    least-squares: ½ mean (r − 1)² + ½ mean f² (Mao et al. 2017, Least Squares Generative Adversarial
    Networks). hinge: mean max(0, 1 − r) + mean max(0, 1 + f) (Lim & Ye 2017, Geometric GAN).

    Args:
        real, fake: scores of any shape (B, …); `fake` of images that are detached.
        kind: least-squares or hinge.
        reduce: adds up over ranks.

    Range [0, ∞).

    >>> float(discriminator_loss(torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)))
    0.0
    """
    real, fake = wide(real), wide(fake)
    if _checked(kind) == "hinge":
        return _mean((1 - real).relu(), reduce) + _mean((1 + fake).relu(), reduce)
    return (_mean((real - 1).square(), reduce) + _mean(fake.square(), reduce)) / 2


def generator_loss(
    fake: Tensor, *, kind: Kind = "least-squares", reduce: Reduce = identity
) -> Tensor:
    """How far the scores f of made images are from those of real ones: ().

    least-squares: mean (f − 1)², without the ½, as in Pix2Pix, so that weights of it can be compared;
    range [0, ∞). hinge: −mean f, of any sign. Arguments and sources as of `discriminator_loss`.

    >>> float(generator_loss(torch.zeros(2, 1, 3, 3)))
    1.0
    """
    fake = wide(fake)
    if _checked(kind) == "hinge":
        return -_mean(fake, reduce)
    return _mean((fake - 1).square(), reduce)


def gradient_penalty(scores: Tensor, images: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Mean over the batch of |∇ Σ scores|², the gradient being that by the image: ().

    R1 of Mescheder et al. 2018, Which Training Methods for GANs do actually Converge?, there with
    a factor γ / 2: a discriminator that is flat at real images cannot drive the network past them.
    The scores of a sample are added up, so that it grows with their number squared.

    Args:
        scores: (B, …) of the images, as the discriminator gave them.
        images: (B, …) real images, which had `requires_grad_()` before they were judged.
        reduce: adds up over ranks.

    Range [0, ∞); differentiable by what the scores were computed with. It is computed in float32 at
    least; for a gradient of that precision, judge the images without autocast.

    >>> images = torch.rand(3, 1, 4, 4).requires_grad_()
    >>> float(gradient_penalty(2 * images, images))
    64.0
    """
    if not images.requires_grad:
        raise ValueError("images have no gradient; call requires_grad_() before they are judged")
    if len(scores) != len(images):
        raise ValueError(f"{len(scores)} scores for {len(images)} images; wanted (B, …) of both")
    with torch.autocast(images.device.type, enabled=False):
        total = wide(scores).sum()
        (slope,) = torch.autograd.grad(total, images, create_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError("the scores do not depend on these images; give those that were judged")
    return _mean(wide(slope).square().flatten(1).sum(1), reduce)


def _mean(values: Tensor, reduce: Reduce) -> Tensor:
    return reduce(values.sum()) / reduce(values.new_tensor(float(values.numel())))


def _checked(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; wanted {' or '.join(KINDS)}")
    return kind

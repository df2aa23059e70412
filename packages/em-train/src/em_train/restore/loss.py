"""What the two players of restoration are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from em_data import Key, Stream, random_at
from em_data.augment.noise import add_gaussian
from em_losses import (
    charbonnier,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    ms_ssim,
)
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from em_train.engine.distributed import reduce
from em_train.restore.data import Pair


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How far a result is from the truth, and how easily it is told from it."""

    pixel: NonNegativeFloat = 1.0
    """Weight of the Charbonnier error of the pixels, nearly the absolute one, in grey ranges."""
    structure: NonNegativeFloat = 0.0
    """Weight of 1 − MS-SSIM."""
    adversary: NonNegativeFloat = 0.0
    """Weight of the discriminator's verdict; with 0 there is no discriminator."""
    kind: Literal["least-squares", "hinge"] = "least-squares"
    """Loss of the two players: least-squares (Mao et al. 2017) or hinge."""
    conditional: bool = True
    """Show the discriminator the damaged slices too, so that it sees whether the result is theirs."""
    instance_noise: NonNegativeFloat = 0.02
    """Deviation of the noise on what the discriminator sees, true or restored, in grey ranges."""
    r1: NonNegativeFloat = 1.0
    """Weight of the penalty on the discriminator's gradients at true images (R1)."""
    r1_every: PositiveInt = 16
    """Steps between penalties, each of which counts for all of them."""

    def __post_init__(self) -> None:
        if self.pixel + self.structure + self.adversary == 0:
            raise ValueError("loss.pixel, loss.structure and loss.adversary are all 0; raise one")


def repair_loss(
    found: Tensor, pair: Pair, verdict: Tensor | None, config: LossConfig
) -> dict[str, Tensor]:
    """The loss of the network that repairs, and its parts; `verdict` are the discriminator's scores."""
    terms = {"pixel": charbonnier(found, pair.truth, pair.where, reduce=reduce)}
    loss = config.pixel * terms["pixel"]
    if config.structure:
        terms["structure"] = 1 - ms_ssim(found, pair.truth, data_range=1.0).mean()
        loss = loss + config.structure * terms["structure"]
    if verdict is not None:
        terms["adversary"] = generator_loss(verdict, kind=config.kind, reduce=reduce)
        loss = loss + config.adversary * terms["adversary"]
    return {"loss": loss, **terms}


def judge_loss(
    discriminator: nn.Module,
    pair: Pair,
    found: Tensor,
    keys: Sequence[Key],
    config: LossConfig,
    *,
    seed: int,
    step: int,
) -> dict[str, Tensor]:
    """The loss of the discriminator on true and restored images, and its parts."""
    condition = pair.shown if config.conditional else None
    real, fake = (
        with_noise(image, keys, config.instance_noise, seed=seed, draw=draw)
        for draw, image in enumerate((pair.truth, found), 1)
    )
    penalised = bool(config.r1) and step % config.r1_every == 0
    real.requires_grad_(penalised)
    scores = discriminator(real, condition), discriminator(fake, condition)
    loss = discriminator_loss(*scores, kind=config.kind, reduce=reduce)
    terms = {"judge": loss, "score_true": scores[0].mean(), "score_repaired": scores[1].mean()}
    if penalised:
        # Of each patch, however many there are: the scores' gradients hardly overlap.
        patches = scores[0][0].numel()
        penalty = gradient_penalty(scores[0], real, reduce=reduce) / patches
        loss = loss + config.r1 / 2 * config.r1_every * penalty
    return {"judge_loss": loss, **terms}


def with_noise(
    image: Tensor, keys: Sequence[Key], deviation: float, *, seed: int, draw: int
) -> Tensor:
    """What the discriminator sees: (B, 1, Y, X) with noise that depends on samples and `draw` alone."""
    if not deviation:
        return image.clone()
    generators = [random_at(seed, Stream.VERDICT, key, draw) for key in keys]
    rows = [generator.integers(-(2**31), 2**31, 2) for generator in generators]
    words = torch.from_numpy(np.stack(rows).astype(np.int32)).to(image.device)
    return add_gaussian(image, torch.full((len(image),), deviation, device=image.device), words)

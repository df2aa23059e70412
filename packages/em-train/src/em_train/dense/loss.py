"""The loss of dense-ssl: what continues, what stays the same, what is there, and what is spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from em_data import Key
from em_losses import (
    cross_entropy,
    cross_sample_variance,
    draw_directions,
    draw_places,
    entropy_floor,
    entropy_of_mean,
    entropy_sums_and_probabilities,
    equivariance,
    info_nce,
    mean_entropy,
    pick,
    sigreg,
)
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from em_train.dense.networks import bank_of
from em_train.dense.texture import features_of
from em_train.dense.views import Views
from em_train.engine import distributed
from em_train.engine.distributed import reduce
from em_train.judge.codes import effective_classes

DIRECTIONS = 64  # of SIGReg, drawn anew every step


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is asked for. A weight of 0 leaves a term out."""

    target: Literal["online", "detached", "ema"] = "online"
    """Source of the target codes: online (the encoder, with gradient), detached (without) or
    ema (its moving average)."""
    context_weight: NonNegativeFloat = 0.5
    """Weight of the cross-entropy between the target's codes and those that its neighbours predict."""
    view_weight: NonNegativeFloat = 0.5
    """Weight of the cross-entropy between the codes of two views of the target."""
    spread: Literal["floor", "information", "sigreg"] = "floor"
    """Term that keeps classes from falling together: floor (under the entropy H̄ of the mean
    code), information (as much H̄ as possible) or sigreg (distance of the images' mean codes
    from a normal distribution)."""
    spread_weight: NonNegativeFloat = 5.0
    """Weight of the term loss.spread."""
    classes_at_least: Annotated[float, Field(ge=1)] = 30.0
    """Number of classes, exp(H̄), that loss.spread=floor spreads the mean code over at
    least."""
    sharpen_weight: NonNegativeFloat = 0.1
    """Weight of the mean entropy of the pixels' codes: higher makes them more decided."""
    contrast_weight: NonNegativeFloat = 0.5
    """Weight of InfoNCE between two views of a place, and between what its neighbours predict and it."""
    contrast_pixels: PositiveInt = 1024
    """Places of a batch that InfoNCE tells apart."""
    contrast_temperature: PositiveFloat = 0.1
    """Temperature of InfoNCE: lower looks at the most similar places only."""
    feature_weight: NonNegativeFloat = 4.0
    """Weight of the regression of features of the unchanged target from the embedding of its views."""
    feature_target: Literal["bank", "average"] = "bank"
    """Features to regress: bank (a filter bank's, made by hand) or average (the embedding of
    the encoder's moving average)."""
    feature_pools: tuple[PositiveInt, ...] = (1,)
    """Sides, odd, of the windows of codes over which the bank's features are averaged. 1: the
    place itself; larger: the texture around it."""
    variance_weight: NonNegativeFloat = 0.0
    """Weight of the variance over samples of the codes at one place, which is maximised."""
    equivariance_weight: NonNegativeFloat = 0.0
    """Weight of the squared difference between codes of a turned image and turned codes."""

    @property
    def views(self) -> int:
        """How many times the target is seen."""
        return 2 if self.view_weight or self.contrast_weight or self.equivariance_weight else 1

    @property
    def asks_bank(self) -> bool:
        """Whether the filter bank is described."""
        return self.feature_weight > 0 and self.feature_target == "bank"

    @property
    def asks_average(self) -> bool:
        """Whether the moving average teaches: its codes, or its embedding."""
        return self.target == "ema" or (self.feature_weight > 0 and not self.asks_bank)


@dataclass(frozen=True)
class Chance:
    """What a loss draws at random, the same whenever and wherever a sample is seen."""

    keys: Sequence[Key]  # of the samples of this process
    seed: int
    batch_size: int  # over all processes
    samples_per_epoch: int

    def places(self, maps: Tensor, count: int) -> Tensor:
        """Pixels of maps (B, C, Y, X), as many of each sample and `count` of the whole batch: (M,)."""
        pixels, each = maps[0, 0].numel(), max(2, count // self.batch_size)
        drawn = [draw_places(pixels, each, key=(self.seed, *key)) for key in self.keys]
        return torch.cat([number * pixels + one for number, one in enumerate(drawn)])

    def directions(self, like: Tensor) -> Tensor:
        """Directions in the space of rows (N, K), the same for all processes: (DIRECTIONS, K)."""
        epoch, number = self.keys[0]
        step = (epoch * self.samples_per_epoch + number) // self.batch_size
        return draw_directions(DIRECTIONS, like.shape[1], key=(self.seed, step)).to(like)


def terms_of(
    networks: nn.ModuleDict,
    teacher: nn.Module | None,
    views: Views,
    weight: LossConfig,
    chance: Chance,
) -> dict[str, Tensor]:
    """The loss of the views of a batch, its parts, and the numbers that are logged beside them."""
    encoder: Any = networks["encoder"]
    predictor: Any = networks["predictor"]
    b, n = views.context.shape[:2]
    v = views.targets.shape[1]

    # Codes and embeddings of all images; those of the views turned back to lie on the context.
    images = torch.cat([views.context, views.targets], 1).flatten(0, 1)[:, None]
    codes = encoder(images)
    logits, embedding = (maps.float().unflatten(0, (b, n + v)) for maps in codes[:2])
    sums, p = entropy_sums_and_probabilities(logits.flatten(0, 1))
    p = p.unflatten(0, (b, n + v))  # (B, N + V, K, Y, X)
    m = predictor.margin
    inner = (..., slice(m, -m), slice(m, -m))
    seen = views.back(embedding[:, n:])  # (B, V, E, Y, X)
    if teacher is None or weight.target != "ema":
        target = views.back(p[:, n:])  # (B, V, K, Y, X)
        target = target.detach() if weight.target == "detached" else target
    else:
        with torch.no_grad():
            logits_ema = teacher(images).logits.float().unflatten(0, (b, n + v))
            target = views.back(logits_ema[:, n:].softmax(2))
    terms = {}

    # What continues through the volume, and what stays the same between views.
    prediction = predictor(p[:, :n]).float()  # (B, K, Y − 2m, X − 2m)
    terms["pred"] = cross_entropy(target[:, 0][inner], prediction, reduce=reduce)
    loss = weight.context_weight * terms["pred"]
    if weight.view_weight:
        first, second = views.back(logits[:, n:]).unbind(1)
        terms["view"] = 0.5 * (
            cross_entropy(target[:, 0], second, reduce=reduce)
            + cross_entropy(target[:, 1], first, reduce=reduce)
        )
        loss = loss + weight.view_weight * terms["view"]
    if weight.contrast_weight:
        project, foresee = networks["project"], networks["foresee"]
        keys = project(seen.flatten(0, 1)).unflatten(0, (b, v))
        foreseen = project(foresee(embedding[:, :n]))  # (B, D, Y − 2m, X − 2m)
        for name, one, other in (
            ("contrast_context", foreseen, keys[:, 0][inner]),
            ("contrast_view", keys[:, 0], keys[:, 1]),
        ):
            places = chance.places(one, weight.contrast_pixels)
            terms[name] = info_nce(
                pick(one, places),
                pick(other, places),
                temperature=weight.contrast_temperature,
                gather=distributed.gather,
                reduce=reduce,
            )
            loss = loss + weight.contrast_weight * terms[name]

    # What is there: the features of the target as it was before any change.
    if weight.feature_weight:
        with torch.no_grad():
            if weight.asks_bank:
                features = features_of(
                    bank_of(networks), views.clean, encoder, weight.feature_pools
                )
            else:
                features = (teacher or encoder)(views.clean).raw.float()
        described = networks["describe"](seen.flatten(0, 1)).float().unflatten(0, (b, v))
        terms["feature"] = F.smooth_l1_loss(described, features[:, None].expand_as(described))
        loss = loss + weight.feature_weight * terms["feature"]

    # Keep the codes spread over classes, decide every pixel.
    spread, undecided = entropy_of_mean(sums, reduce=reduce), mean_entropy(sums, reduce=reduce)
    if weight.spread == "sigreg":
        samples = p.mean((3, 4)).flatten(0, 1)  # (B·(N + V), K)
        terms["reg"] = sigreg(samples, chance.directions(samples), reduce=reduce)
    elif weight.spread == "information":
        terms["reg"] = -spread
    else:
        terms["reg"] = entropy_floor(spread, floor=math.log(weight.classes_at_least))
    loss = loss + weight.spread_weight * terms["reg"] + weight.sharpen_weight * undecided

    # Two penalties of earlier attempts, off by default.
    if weight.variance_weight:
        terms["var"] = cross_sample_variance(p[:, n], reduce=reduce)
        loss = loss - weight.variance_weight * terms["var"]
    if weight.equivariance_weight:
        still, turned = views.back(p[:, n:]).unbind(1)
        terms["equivariance"] = equivariance(still, turned, turn=lambda maps: maps, reduce=reduce)
        loss = loss + weight.equivariance_weight * terms["equivariance"]
    with torch.no_grad():
        most, hard = p.max(2)
        plain = predictor.from_mean(p[:, :n])
        beyond = cross_entropy(target[:, 0][inner], plain, reduce=reduce) - terms["pred"]
    return {
        "loss": loss,
        **terms,
        "information": spread - terms["pred"],
        "beyond_mean": beyond,
        "mean_classes": spread.exp(),
        "cond": undecided,
        "max_probability": most.mean(),
        "active_classes": torch.tensor(effective_classes(hard)),
        "unique_classes": torch.tensor(float(hard.unique().numel())),
    }

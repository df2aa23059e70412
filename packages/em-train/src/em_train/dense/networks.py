"""What dense-ssl trains: an encoder, and what gives it something to learn and is thrown away after."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal

from em_models import (
    DenseEncoder,
    DenseEncoderConfig,
    FilterBank,
    FilterBankConfig,
    Geometry,
    Projector,
    ProjectorConfig,
    SlicePredictor,
    SlicePredictorConfig,
    TimmEncoder,
    TimmEncoderConfig,
    layout,
)
from em_models.predictor import Kind as PredictorKind
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import nn


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained."""

    kind: Literal["dense", "timm"] = "dense"
    """Encoder: dense (convolutions, see model.encoder) or timm (a backbone of timm with a
    decoder, see model.timm)."""
    encoder: DenseEncoderConfig = field(default_factory=lambda: layout("rf81"))
    timm: TimmEncoderConfig = field(
        default_factory=lambda: TimmEncoderConfig(backbone="convnext_atto", max_stride=4)
    )
    predictor: PredictorKind = "shallow"
    """Network that guesses the target slice from its neighbours: shallow, dilated, unet or
    jepa."""
    predictor_width: PositiveInt = 64
    """Channels of the predictor's hidden layers."""
    predictor_layers: PositiveInt = 2
    """Convolutions, levels or blocks of the predictor."""
    projection: PositiveInt = 32
    """Channels of the projection in which InfoNCE compares embeddings."""
    recluster: bool = True
    """Replace the trained classes, at the end, by clusters of the embedding."""
    recluster_frequency: NonNegativeFloat = 0.5
    """Preference of the clustering for frequent clusters. 0: clusters of like size; 1: few are
    really used."""
    recluster_texture: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of local texture, as the filter bank measures it, in the distances of the
    clustering; needs loss.feature_target=bank. 0: the embedding as trained."""

    @property
    def chosen(self) -> DenseEncoderConfig | TimmEncoderConfig:
        """The configuration of the encoder that is trained."""
        return self.timm if self.kind == "timm" else self.encoder


@lru_cache
def geometry_of(model: ModelConfig) -> Geometry:
    """How the codes of the encoder lie in its input."""
    return encoder_of(model).geometry


def encoder_of(model: ModelConfig) -> DenseEncoder | TimmEncoder:
    """A new encoder."""
    return TimmEncoder(model.timm) if model.kind == "timm" else DenseEncoder(model.encoder)


def predictor_config(model: ModelConfig, *, neighbours: int) -> SlicePredictorConfig:
    """The predictor that fits the encoder, given the codes of so many neighbours."""
    return SlicePredictorConfig(
        kind=model.predictor,
        classes=model.chosen.classes,
        context=neighbours,
        width=model.predictor_width,
        layers=model.predictor_layers,
    )


def networks_of(
    model: ModelConfig,
    predictor: SlicePredictorConfig,
    *,
    contrasts: bool,
    textures: int,
    learned: bool,
) -> nn.ModuleDict:
    """New networks.

    Args:
        contrasts: whether embeddings are told apart, and foreseen from their neighbours.
        textures: over how many sizes of window the features of the filter bank are described.
        learned: describe another encoder's embedding instead.
    """
    encoder, channels = encoder_of(model), model.chosen.embedding
    networks = nn.ModuleDict({"encoder": encoder, "predictor": SlicePredictor(predictor)})
    if contrasts:
        foresee = replace(predictor, given="embedding", classes=channels)
        networks["foresee"] = SlicePredictor(foresee)
        networks["project"] = Projector(ProjectorConfig(inputs=channels, outputs=model.projection))
    if textures:
        bank = FilterBank(FilterBankConfig())
        networks["bank"] = bank
        networks["describe"] = nn.Conv2d(channels, bank.config.features * textures, 1)
    elif learned:
        networks["describe"] = nn.Conv2d(channels, channels, 1)
    return networks


def bank_of(networks: nn.ModuleDict) -> FilterBank:
    """The filter bank among the networks."""
    bank = networks["bank"]
    assert isinstance(bank, FilterBank)
    return bank

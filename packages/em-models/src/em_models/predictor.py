"""Predict the codes of a slice from the codes of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class SlicePredictorConfig:
    """Shape of a `SlicePredictor`."""

    classes: int = 50
    """K of the encoder."""
    context: int = 4
    """Number of neighbouring slices."""
    width: int = 64
    """Channels of the hidden layers."""
    layers: int = 2
    """Number of 3 × 3 convolutions; each sees one more code in every direction."""

    def __post_init__(self) -> None:
        if min(self.classes, self.context, self.width, self.layers) < 1:
            raise ValueError(f"{self}: every number must be at least 1")


class SlicePredictor(nn.Module):
    """Codes of the context (B, N, K, Y, X) -> logits of the middle (B, K, Y − 2·margin, …).

    Valid convolutions, for the reason given in `em_models.dense`. The prediction starts from the
    mean code of the context: the network only has to learn what goes beyond it.

    >>> predictor = SlicePredictor(SlicePredictorConfig(classes=8))
    >>> predictor(torch.rand(2, 4, 8, 19, 19).softmax(2)).shape
    torch.Size([2, 8, 15, 15])
    """

    Config = SlicePredictorConfig

    def __init__(self, config: SlicePredictorConfig) -> None:
        super().__init__()
        self.config = config
        inputs, blocks = config.context * config.classes, []
        for _ in range(config.layers):
            blocks += [
                nn.Conv2d(inputs, config.width, 3, bias=False),
                nn.BatchNorm2d(config.width),
                nn.ReLU(),
            ]
            inputs = config.width
        self.network = nn.Sequential(*blocks, nn.Conv2d(inputs, config.classes, 1))
        self.trust = nn.Parameter(torch.ones(()))

    @property
    def margin(self) -> int:
        """Codes at each border that get no prediction."""
        return self.config.layers

    def forward(self, context: Tensor) -> Tensor:
        """Logits of the middle slice from probabilities of its neighbours."""
        slices, classes = context.shape[1:3]
        if (slices, classes) != (self.config.context, self.config.classes):
            raise ValueError(
                f"context has {slices} slices of {classes} classes; wanted "
                f"{self.config.context} of {self.config.classes}"
            )
        m = self.margin
        mean = context.mean(1)[..., m:-m, m:-m]  # (B, K, Y − 2m, X − 2m)
        # 1e-4 keeps a class that the context lacks possible.
        return self.network(context.flatten(1, 2)) + self.trust * (mean + 1e-4).log()

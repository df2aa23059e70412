"""The space in which embeddings are contrasted, so that the embedding itself may keep more."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from em_models.norm import BatchNorm


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Channels of a `Projector`."""

    inputs: int = 64
    """Channels of the embedding."""
    hidden: int = 64
    """Channels of the layer between."""
    outputs: int = 32
    """Channels that are contrasted."""

    def __post_init__(self) -> None:
        if min(self.inputs, self.hidden, self.outputs) < 1:
            raise ValueError(f"{self}: every number must be at least 1")


class Projector(nn.Module):
    """Embedding (B, E, Y, X) -> (B, outputs, Y, X), each place by itself.

    Hidden layer, batch norm, rectified, read out. It is thrown away after training: Chen et al. 2020,
    A Simple Framework for Contrastive Learning of Visual Representations, measure what it is for.

    >>> import torch
    >>> Projector(ProjectorConfig())(torch.rand(2, 64, 9, 9)).shape
    torch.Size([2, 32, 9, 9])
    """

    Config = ProjectorConfig

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = nn.Sequential(
            nn.Conv2d(config.inputs, config.hidden, 1, bias=False),
            BatchNorm(config.hidden),
            nn.ReLU(),
            nn.Conv2d(config.hidden, config.outputs, 1),
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """What is contrasted at every place."""
        return self.network(embedding)

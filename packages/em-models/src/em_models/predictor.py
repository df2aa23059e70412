"""Predict the codes of a slice from the codes of its neighbours.

Every kind of network here is valid, for the reason given in `em_models.dense`, and the same at every
place: where others take strides, these spread their kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from em_models.norm import BatchNorm

Kind = Literal["shallow", "dilated", "unet", "jepa"]


@dataclass(frozen=True, kw_only=True)
class SlicePredictorConfig:
    """Shape of a `SlicePredictor`."""

    kind: Kind = "shallow"
    """shallow: 3 × 3 convolutions. dilated: the same, each spread twice as wide as the one before.
    unet: down `layers` levels and up again. jepa: residual blocks and an MLP of every place."""
    given: Literal["probabilities", "embedding"] = "probabilities"
    """What the context holds, and what is predicted from it."""
    classes: int = 50
    """K of the encoder, or the channels of its embedding."""
    context: int = 4
    """Number of neighbouring slices."""
    width: int = 64
    """Channels of the hidden layers."""
    layers: int = 2
    """Number of 3 × 3 convolutions, levels or blocks; `margin` says how far they see."""

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise ValueError(f"kind is {self.kind!r}; wanted one of {', '.join(NETWORKS)}")
        if self.given not in ("probabilities", "embedding"):
            raise ValueError(f"given is {self.given!r}; wanted probabilities or embedding")
        if min(self.classes, self.context, self.width, self.layers) < 1:
            raise ValueError(f"{self}: every number must be at least 1")

    @property
    def margin(self) -> int:
        """Codes at each border that get no prediction."""
        doubling = 2**self.layers - 1  # 1 + 2 + 4 + …
        down_up = 2 * doubling + 2**self.layers
        return {"dilated": doubling, "unet": down_up}.get(self.kind, self.layers)


class SlicePredictor(nn.Module):
    """Codes of the context (B, N, K, Y, X) -> logits of the middle (B, K, Y − 2·margin, …).

    The prediction starts from the mean code of the context: the network only has to learn what goes
    beyond it. Given embeddings instead of probabilities, it returns a predicted embedding.

    >>> predictor = SlicePredictor(SlicePredictorConfig(classes=8))
    >>> predictor(torch.rand(2, 4, 8, 19, 19).softmax(2)).shape
    torch.Size([2, 8, 15, 15])
    """

    Config = SlicePredictorConfig

    def __init__(self, config: SlicePredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = NETWORKS[config.kind](config)
        self.trust = nn.Parameter(torch.ones(()))

    @property
    def margin(self) -> int:
        """Codes at each border that get no prediction."""
        return self.config.margin

    def forward(self, context: Tensor) -> Tensor:
        """Logits of the middle slice from probabilities of its neighbours."""
        slices, classes = context.shape[1:3]
        if (slices, classes) != (self.config.context, self.config.classes):
            raise ValueError(
                f"context has {slices} slices of {classes} classes; wanted "
                f"{self.config.context} of {self.config.classes}"
            )
        return self.network(context.flatten(1, 2)) + self.trust * self.from_mean(context)

    def from_mean(self, context: Tensor) -> Tensor:
        """What the mean of the context says by itself, in the form and place of the prediction.

        The log of a mean of probabilities, so that its softmax is that mean: (B, K, Y − 2·margin, …).
        """
        mean = _centre(context.mean(1), self.margin)
        # 1e-4 keeps a class that the context lacks possible.
        return (mean + 1e-4).log() if self.config.given == "probabilities" else mean


def _centre(features: Tensor, cut: int) -> Tensor:
    """Without `cut` places at each border: (…, Y, X) -> (…, Y − 2·cut, X − 2·cut)."""
    rows, columns = (slice(cut, n - cut) for n in features.shape[-2:])
    return features[..., rows, columns]


def _convolve(inputs: int, outputs: int, dilation: int = 1) -> list[nn.Module]:
    """A valid 3 × 3 convolution, normalised and rectified."""
    return [
        nn.Conv2d(inputs, outputs, 3, dilation=dilation, bias=False),
        BatchNorm(outputs),
        nn.ReLU(),
    ]


def _inputs(config: SlicePredictorConfig) -> int:
    return config.context * config.classes


def _chain(config: SlicePredictorConfig, dilations: list[int]) -> nn.Module:
    """Convolutions in a row, and a 1 × 1 that reads them: (B, N·K, Y, X) -> (B, K, …)."""
    widths = [_inputs(config)] + [config.width] * len(dilations)
    layers = [
        _convolve(i, o, dilation)
        for (i, o), dilation in zip(itertools.pairwise(widths), dilations, strict=True)
    ]
    return nn.Sequential(*itertools.chain(*layers), nn.Conv2d(config.width, config.classes, 1))


def _shallow(config: SlicePredictorConfig) -> nn.Module:
    return _chain(config, [1] * config.layers)


def _dilated(config: SlicePredictorConfig) -> nn.Module:
    return _chain(config, [2**level for level in range(config.layers)])


class _UNet(nn.Module):
    """Down and up again, every level at the full grid with kernels spread twice as wide.

    A U-Net with strides gives neighbouring places different networks, by their phase in its grid.
    """

    def __init__(self, config: SlicePredictorConfig) -> None:
        super().__init__()
        width, levels = config.width, config.layers
        fine = [_inputs(config)] + [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            nn.Sequential(*_convolve(fine[level], fine[level + 1], 2**level))
            for level in range(levels + 1)
        )
        self.up = nn.ModuleList(
            nn.Sequential(*_convolve(fine[level + 2] + fine[level + 1], fine[level + 1], 2**level))
            for level in reversed(range(levels))
        )
        self.read = nn.Conv2d(width, config.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            skip = skips.pop()
            x = level(torch.cat([x, _centre(skip, (skip.shape[-1] - x.shape[-1]) // 2)], 1))
        return self.read(x)


class _Residual(nn.Module):
    """x + convolution of x, where both have a value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolve(width, width), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _centre(x, 1) + self.body(x)


def _jepa(config: SlicePredictorConfig) -> nn.Module:
    """Narrow in, residual blocks, and an MLP of every place.

    After the predictor of Assran et al. 2023, Self-Supervised Learning from Images with a
    Joint-Embedding Predictive Architecture, with convolutions in the place of attention.
    """
    width = config.width
    return nn.Sequential(
        nn.Conv2d(_inputs(config), width, 1, bias=False),
        BatchNorm(width),
        *(_Residual(width) for _ in range(config.layers)),
        nn.Conv2d(width, 4 * width, 1, bias=False),
        BatchNorm(4 * width),
        nn.GELU(),
        nn.Conv2d(4 * width, config.classes, 1),
    )


NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "shallow": _shallow,
    "dilated": _dilated,
    "unet": _UNet,
    "jepa": _jepa,
}

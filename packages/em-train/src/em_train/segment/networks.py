"""The networks of a segmentation, and the weights that they start from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import em_models
from em_data import open_volume
from em_models import UNet, UNet3d, UNet3dConfig, UNetConfig
from torch import nn

from em_train.engine import checkpoint
from em_train.engine.errors import CheckpointError
from em_train.engine.reading import open_collection
from em_train.engine.stored import read_json
from em_train.segment.data import DataConfig
from em_train.segment.labels import Classes
from em_train.segment.loss import LossConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained. The labels say how many classes there are."""

    kind: Literal["unet", "unet3d"] = "unet"
    """Network: unet (slice by slice) or unet3d (in space)."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    unet3d: UNet3dConfig = field(default_factory=UNet3dConfig)
    freeze_guide: bool = False
    """Keep the weights of the encoder that --init brought."""


def make_networks(model: ModelConfig, loss: LossConfig, classes: Classes) -> nn.ModuleDict:
    """The network, with a logit for every class."""
    outputs = len(classes.names) + (loss.kind == "softmax")
    if loss.class_weights and len(loss.class_weights) != outputs:
        raise ValueError(
            f"loss.class_weights has {len(loss.class_weights)} numbers for {outputs} outputs "
            f"({', '.join(classes.names)}{', after the rest' if outputs > len(classes.names) else ''})"
        )
    if loss.kind == "softmax" and not (classes.exclusive or classes.values):
        raise ValueError(
            "loss.kind is softmax, which gives a pixel one class, but labels may overlap; say which "
            "one counts with data.exclusive=true (the last), or take loss.kind=binary"
        )
    if model.kind == "unet":
        return nn.ModuleDict({"network": UNet(replace(model.unet, classes=outputs))})
    return nn.ModuleDict({"network": UNet3d(replace(model.unet3d, classes=outputs))})


@dataclass(frozen=True)
class _Scale:
    at_nm: tuple[float, float, float] | None = None
    pixel_nm: float | None = None


@dataclass(frozen=True)
class _GuideRun:
    """What counts here of the configuration of the run that a guide comes from."""

    data: _Scale


def guide_of(init: str, data: DataConfig) -> dict[str, Any]:
    """Configuration that makes room for the encoder of a dense-ssl run; empty for other runs.

    The encoder sees pixels of the size that it was trained on: those of the image, averaged.
    """
    weights = Path(init) / "weights" / "encoder"
    if not (weights / "config.json").exists():
        return {}
    described = em_models.read_description(weights)
    if described.name != "DenseEncoder":
        raise ValueError(
            f"{init} holds a {described.name}; a U-Net takes a DenseEncoder as its guide: train "
            "one with emtrain dense-ssl, or leave --init out"
        )
    remedy = "put back a copy of it, or leave --init out"
    own = read_json(Path(init) / "config.json", _GuideRun, remedy).data
    wanted = own.at_nm[1] if own.at_nm else own.pixel_nm
    images = open_collection(data, hold=False)
    size_nm = images.voxel_size_nm if images is not None else None
    if images is None and data.volumes:
        size_nm = open_volume(data.volumes[0], at_nm=data.at_nm).voxel_size_nm
    ratio = max(1.0, wanted / size_nm[1]) if wanted and size_nm else 1.0
    guide = {"guide": described.config, "guide_scale": 2 ** round(math.log2(ratio))}
    return {"model": {"unet": guide}}


def initialise(networks: nn.ModuleDict, init: Path) -> None:
    """Take over the weights of another run: of its encoder, or of the same network."""
    network: Any = networks["network"]
    if not (init / "weights" / "encoder").exists():
        checkpoint.initialise(networks, init)
        return
    if getattr(network, "guide", None) is None:
        raise CheckpointError(
            f"{init} is a dense-ssl run, but model.unet.guide has no place for its encoder; give it "
            "with --init, and with model.kind=unet"
        )
    checkpoint.take_over(network.guide, em_models.load(init / "weights" / "encoder"), init)


def freeze(networks: nn.ModuleDict) -> None:
    """Keep the guide's weights and statistics as they are."""
    guide: Any = getattr(networks["network"], "guide", None)
    if guide is None:
        raise ValueError("model.freeze_guide is set, but there is no guide; give --init RUN")
    guide.requires_grad_(False).eval()


def layers_of(networks: nn.ModuleDict) -> list[nn.Module]:
    """What learns slower with `optim.layer_decay`: what was learnt before, from the input on."""
    network: Any = networks["network"]
    if getattr(network, "guide", None) is not None:
        return [network.guide]
    if isinstance(network, UNet):
        return [*network.encoder, network.bottleneck, *network.decoder]
    return [*network.encoder, *reversed(network.decoder)]

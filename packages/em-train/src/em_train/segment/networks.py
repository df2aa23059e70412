"""The networks of a segmentation, and the weights that they start from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import em_models
from em_data import open_volume
from em_data.geometry import Float3
from em_models import (
    HrNet,
    HrNetConfig,
    TimmHrNet,
    TimmHrNetConfig,
    UNet,
    UNet3d,
    UNet3dConfig,
    UNetConfig,
)
from torch import nn

from em_train.engine import checkpoint
from em_train.engine import config as configuration
from em_train.engine.errors import CheckpointError
from em_train.engine.reading import open_collection
from em_train.engine.stored import read_config, read_json
from em_train.segment.data import DataConfig
from em_train.segment.labels import Classes
from em_train.segment.loss import LossConfig

NetworkConfig = UNetConfig | UNet3dConfig | HrNetConfig | TimmHrNetConfig

NETWORKS: dict[str, Any] = {
    "unet": UNet,
    "unet3d": UNet3d,
    "hrnet": HrNet,
    "timm-hrnet": TimmHrNet,
}
HEADS = ("head", "heads")  # what is made for the classes
ENCODERS = {"unet": ("guide", "encoder", "downs", "bottleneck"), "timm-hrnet": ("backbone",)}
# Keys that the weights below the head do not depend on.
FREE = ("classes", "deep_supervision", "dropout", "pretrained")
OTHER_SCALE = 1.1  # times larger or smaller pixels are worth a word


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained. The labels say how many classes there are."""

    kind: Literal["unet", "unet3d", "hrnet", "timm-hrnet"] = "unet"
    """Network: unet, hrnet (branches of different resolution) or timm-hrnet (hrnet_w18_small of
    timm), slice by slice; or unet3d, in space."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    unet3d: UNet3dConfig = field(default_factory=UNet3dConfig)
    hrnet: HrNetConfig = field(default_factory=HrNetConfig)
    timm_hrnet: TimmHrNetConfig = field(default_factory=TimmHrNetConfig)
    take: Literal["whole", "encoder", "decoder"] = "whole"
    """Part of a restore run that --init takes over: whole, encoder or decoder. The head is new."""
    freeze_guide: bool = False
    """Keep the weights of the encoder that --init brought."""

    @property
    def network(self) -> NetworkConfig:
        """The network that is trained, but for its number of classes."""
        found: NetworkConfig = getattr(self, part_of(self.kind))
        return found

    @property
    def slices(self) -> int | None:
        """Slices that are shown as channels; None in space."""
        network = self.network
        return None if isinstance(network, UNet3dConfig) else network.slices


def part_of(kind: str) -> str:
    """The group of keys of a kind of network."""
    return kind.replace("-", "_")


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
    network: Any = model.network
    return nn.ModuleDict({"network": NETWORKS[model.kind](replace(network, classes=outputs))})


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


@dataclass(frozen=True)
class _Restoration:
    """What counts here of a restore run's `restoration.json`."""

    voxel_size_nm: Float3 | None


class Restorer(NamedTuple):
    """The network of a restore run that is done."""

    kind: str
    config: Any
    voxel_size_nm: Float3 | None


def restorer_of(run: Path) -> Restorer | None:
    """The network of a restore run; None for runs of other recipes."""
    if not (run / "config.json").exists() or read_config(run)["command"] != "restore":
        return None
    path, weights = run / "restoration.json", run / "weights" / "network"
    if not path.exists():
        raise CheckpointError(
            f"{run} is a restore run that is not done; finish the run first, with emtrain restore --out "
            f"{run} --resume"
        )
    remedy = f"put back a copy of it, or write it again with emtrain restore --out {run} --resume"
    size_nm = read_json(path, _Restoration, remedy).voxel_size_nm
    described = em_models.read_description(weights)
    kinds = {cls.__name__: kind for kind, cls in NETWORKS.items()}
    if described.name not in kinds:
        raise CheckpointError(
            f"{weights} holds a {described.name}; wanted the network of a restore run: put back a copy "
            "of the weights"
        )
    kind = kinds[described.name]
    own = configuration.Layer(f"{weights}/config.json", described.config)
    return Restorer(kind, configuration.resolve(NETWORKS[kind].Config, [own]), size_nm)


def network_of(init: str) -> dict[str, Any]:
    """Configuration of the network of a restore run; empty for other runs."""
    found = restorer_of(Path(init))
    if found is None:
        return {}
    own = {key: value for key, value in asdict(found.config).items() if key not in FREE}
    return {"model": {"kind": found.kind, part_of(found.kind): own}}


def check_start(model: ModelConfig, init: Path) -> Restorer | None:
    """Refuse a network that is not that of the restore run that it starts from."""
    found = restorer_of(init)
    if found is None:
        if model.take != "whole":
            raise ValueError(
                f"model.take is {model.take}, and {init} is no restore run; other runs are taken whole: "
                "leave it out"
            )
        return None
    if found.kind != model.kind:
        raise CheckpointError(
            f"{init} holds a network of kind {found.kind}, and model.kind is {model.kind}; leave "
            "model.kind out: with --init it is that of the run"
        )
    network: Any = model.network
    free = {key: getattr(found.config, key) for key in FREE if hasattr(found.config, key)}
    other = configuration.differences(found.config, replace(network, **free))
    if other:
        raise CheckpointError(
            f"{init} holds another network than model.{part_of(found.kind)} describes (its value ≠ "
            f"yours): {'; '.join(other)}; leave these keys out: with --init they are those of the run"
        )
    if model.take != "whole" and model.kind not in ENCODERS:
        raise ValueError(
            f"model.take is {model.take}, and an {model.kind} has no encoder and decoder apart; leave it "
            "out: it is taken whole"
        )
    return found


def scale_of(init: Path, size_nm: Float3 | None) -> str:
    """What is to be said where a restore run learned from pixels of another size; mostly nothing."""
    found = restorer_of(init)
    learned = found and found.voxel_size_nm
    if not learned or not size_nm or abs(math.log(size_nm[1] / learned[1])) < math.log(OTHER_SCALE):
        return ""
    return (
        f"{init} learned from pixels of {learned[1]:g} nm, and these are {size_nm[1]:g} nm; data.at_nm "
        "takes the level nearest to a voxel size"
    )


def initialise(networks: nn.ModuleDict, model: ModelConfig, init: Path) -> None:
    """Take over the weights of another run: of its encoder, of a restorer, or of the same network."""
    network: Any = networks["network"]
    if check_start(model, init):
        loaded = em_models.load(init / "weights" / "network")
        encoder = ENCODERS.get(model.kind, ())
        for name, part in network.named_children():
            taken = model.take == "whole" or (model.take == "encoder") == (name in encoder)
            if taken and name not in HEADS:
                checkpoint.take_over(part, getattr(loaded, name), init)
        return
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
    if isinstance(network, HrNet):
        return [nn.ModuleList([network.stem, network.downs]), *network.exchanges]
    if isinstance(network, TimmHrNet):
        own: Any = network.backbone
        stem = nn.ModuleList([own.conv1, own.bn1, own.conv2, own.bn2])
        stages = [(own.transition1, own.stage2), (own.transition2, own.stage3)]
        stages.append((own.transition3, own.stage4))
        return [stem, own.layer1, *map(nn.ModuleList, stages), network.joins]
    if isinstance(network, UNet):
        first, *others = network.encoder
        down = map(nn.ModuleList, zip(network.downs, others, strict=True))
        up = map(nn.ModuleList, zip(network.ups, network.decoder, strict=True))
        return [first, *down, network.bottleneck, *up]
    up = map(nn.ModuleList, zip(network.ups, network.decoder, strict=True))
    return [*network.encoder, *reversed([*up])]

"""The two players of restoration: the network that repairs, and the discriminator that tells it from truth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from em_models import (
    HrNet,
    HrNetConfig,
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    TimmHrNet,
    TimmHrNetConfig,
    UNet,
    UNetConfig,
)
from torch import Tensor, nn

from em_train.engine import checkpoint
from em_train.engine import config as configuration
from em_train.engine.errors import CheckpointError
from em_train.engine.run_folder import stored_part
from em_train.engine.stored import read_config
from em_train.restore.data import DataConfig
from em_train.restore.loss import LossConfig

NETWORKS = {"unet": UNet, "hrnet": HrNet, "timm-hrnet": TimmHrNet}
FREE = ("dropout", "pretrained")  # keys that the weights do not depend on


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained. data.slices says how many slices the network is shown."""

    kind: Literal["unet", "hrnet", "timm-hrnet"] = "unet"
    """Network: unet, hrnet (three branches of different resolution) or timm-hrnet (hrnet_w18_small
    of timm)."""
    # Interpolation before convolution leaves no chequerboard.
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(channels=(16, 32, 64, 128), up="bilinear")
    )
    hrnet: HrNetConfig = field(default_factory=HrNetConfig)
    timm_hrnet: TimmHrNetConfig = field(default_factory=TimmHrNetConfig)
    residual: bool | None = None
    """Learn the difference from the middle slice, which is added to what the network says. Without
    it, unless noise is all that is learned from: then the slice would bring its noise along."""
    discriminator: PatchDiscriminatorConfig = field(default_factory=PatchDiscriminatorConfig)

    @property
    def network(self) -> UNetConfig | HrNetConfig | TimmHrNetConfig:
        """The network that repairs, but for its slices."""
        own: dict[str, Any] = {
            "unet": self.unet,
            "hrnet": self.hrnet,
            "timm-hrnet": self.timm_hrnet,
        }
        found: UNetConfig | HrNetConfig | TimmHrNetConfig = own[self.kind]
        return found


def make_networks(model: ModelConfig, data: DataConfig) -> nn.ModuleDict:
    """The network that repairs: slices to the middle one."""
    network: Any = NETWORKS[model.kind](described(model, data))
    if is_residual(model, data):  # at first it leaves the slice as it is
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d) and layer.out_channels == 1:
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
    return nn.ModuleDict({"network": network})


def described(model: ModelConfig, data: DataConfig) -> Any:
    """The configuration of the network that repairs."""
    network: Any = model.network
    return replace(network, classes=1, slices=data.slices)


def initialise(networks: nn.ModuleDict, model: ModelConfig, data: DataConfig, init: Path) -> None:
    """Take over the weights of another restore run; those of another network are refused."""
    if (init / "config.json").exists():
        command = read_config(init)["command"]
        if command != "restore":
            raise CheckpointError(
                f"{init} is a run of {command}, and emtrain restore starts from runs of restore; give "
                "one with --init, or leave it out"
            )
        known = stored_part(init, "restore", "model", ModelConfig)
        if known.kind != model.kind:
            raise CheckpointError(
                f"{init} holds a network of kind {known.kind}, and model.kind is {model.kind}; choose the "
                "same with --set, or leave --init out"
            )
        theirs = described(known, stored_part(init, "restore", "data", DataConfig))
        ours = described(model, data)
        free = {key: getattr(theirs, key) for key in FREE if hasattr(theirs, key)}
        if other := configuration.differences(theirs, replace(ours, **free)):
            raise CheckpointError(
                f"{init} holds another {model.kind} than is to be trained (its value ≠ yours): "
                f"{'; '.join(other)}; choose the same with --set, or leave --init out"
            )
    checkpoint.initialise(networks, init)


def make_judges(model: ModelConfig, data: DataConfig, loss: LossConfig) -> nn.ModuleDict:
    """The discriminator, which may be shown the damaged slices beside what it judges; none without weight."""
    if not loss.adversary:
        return nn.ModuleDict()
    inputs = 1 + data.slices * loss.conditional
    config = replace(model.discriminator, inputs=inputs)
    return nn.ModuleDict({"discriminator": PatchDiscriminator(config)})


def is_residual(model: ModelConfig, data: DataConfig) -> bool:
    """Whether the middle slice is added to what the network says."""
    return data.learn_from != "noise" if model.residual is None else model.residual


def restored(network: nn.Module, shown: Tensor, residual: bool) -> Tensor:
    """The middle slice, repaired: (B, S, Y, X) -> (B, 1, Y, X)."""
    found: Tensor = network(shown)
    middle = shown.shape[1] // 2
    return shown[:, middle : middle + 1] + found if residual else found

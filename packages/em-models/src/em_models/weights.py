"""Weights on disk: a folder with `config.json` and `model.safetensors`, loaded in one call.

No pickle: a folder of weights from anybody can be opened safely, and read from other languages.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from em_models.dense import DenseEncoder
from em_models.filter_bank import FilterBank
from em_models.mae import Mae
from em_models.predictor import SlicePredictor
from em_models.projector import Projector
from em_models.timm_encoder import TimmEncoder
from em_models.unet import UNet
from em_models.unet3d import UNet3d
from em_models.vit3d import Vit3d

FORMAT = 1
MODELS: dict[str, Any] = {
    "DenseEncoder": DenseEncoder,
    "FilterBank": FilterBank,
    "Mae": Mae,
    "Projector": Projector,
    "SlicePredictor": SlicePredictor,
    "TimmEncoder": TimmEncoder,
    "UNet": UNet,
    "UNet3d": UNet3d,
    "Vit3d": Vit3d,
}


def save(model: nn.Module, folder: str | Path) -> None:
    """Write the weights and the configuration of a model of this package."""
    name = type(model).__name__
    if name not in MODELS:
        raise ValueError(f"no name for {name} in weights.MODELS; it has {', '.join(MODELS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.config
    described = {"class": name, "config": dataclasses.asdict(config), "format": FORMAT}
    # Under temporary names first: what is called model.safetensors is whole.
    weights, text = folder / ".model.safetensors.tmp", folder / ".config.json.tmp"
    try:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    except SafetensorError as error:
        weights.unlink(missing_ok=True)
        raise OSError(f"cannot write {weights.parent} ({error}); is the disk full?") from error
    text.write_text(json.dumps(described, indent=2) + "\n")
    weights.replace(folder / "model.safetensors")
    text.replace(folder / "config.json")


def load(folder: str | Path) -> nn.Module:
    """The model whose weights lie in `folder`, in evaluation mode on the CPU."""
    folder = Path(folder)
    try:
        described = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no weights in {folder}: wanted config.json and model.safetensors there"
        ) from error
    if described.get("format") != FORMAT or described.get("class") not in MODELS:
        raise ValueError(
            f"{folder}/config.json describes class {described.get('class')!r} in format "
            f"{described.get('format')!r}; this version reads {', '.join(MODELS)} in format {FORMAT}"
        )
    cls = MODELS[described["class"]]
    model: nn.Module = cls(_config(cls.Config, described["config"]))
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except SafetensorError as error:
        raise ValueError(
            f"{folder}/model.safetensors is damaged ({error}); copy it again"
        ) from error
    return model.eval()


def _config(cls: Any, described: dict[str, Any]) -> Any:
    """A configuration from JSON, which knows neither tuples nor classes."""
    kinds = typing.get_type_hints(cls)
    settings: dict[str, Any] = {}
    for key, value in described.items():
        if isinstance(value, dict):
            choices = (kinds[key], *typing.get_args(kinds[key]))
            value = _config(next(c for c in choices if dataclasses.is_dataclass(c)), value)
        settings[key] = tuple(value) if isinstance(value, list) else value
    return cls(**settings)

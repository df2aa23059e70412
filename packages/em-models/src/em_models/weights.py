"""Weights on disk: a folder with `config.json` and `model.safetensors`, loaded in one call.

No pickle, and nothing that fetches: a folder of weights from anybody can be opened safely, and read
from other languages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from em_models.dense import DenseEncoder
from em_models.filter_bank import FilterBank
from em_models.hrnet import HrNet, TimmHrNet
from em_models.mae import Mae
from em_models.patch_discriminator import PatchDiscriminator
from em_models.predictor import SlicePredictor
from em_models.projector import Projector
from em_models.timm_encoder import TimmEncoder
from em_models.unet import UNet
from em_models.unet3d import UNet3d
from em_models.vit3d import Vit3d

FORMAT = 1
NAMED = 3  # tensors that a message names
MODELS: dict[str, Any] = {
    "DenseEncoder": DenseEncoder,
    "FilterBank": FilterBank,
    "HrNet": HrNet,
    "Mae": Mae,
    "PatchDiscriminator": PatchDiscriminator,
    "Projector": Projector,
    "SlicePredictor": SlicePredictor,
    "TimmEncoder": TimmEncoder,
    "TimmHrNet": TimmHrNet,
    "UNet": UNet,
    "UNet3d": UNet3d,
    "Vit3d": Vit3d,
}


class Described(NamedTuple):
    """What the `config.json` beside weights says."""

    name: str  # of the class
    config: dict[str, Any]


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
    weights = folder / f".model.safetensors.{os.getpid()}.tmp"
    text = folder / f".config.json.{os.getpid()}.tmp"
    try:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
        text.write_text(json.dumps(described, indent=2) + "\n")
        weights.replace(folder / "model.safetensors")
        text.replace(folder / "config.json")
    except SafetensorError as error:
        raise OSError(f"cannot write {folder} ({error}); is the disk full?") from error
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)


def load(folder: str | Path) -> nn.Module:
    """The model whose weights lie in `folder`, in evaluation mode on the CPU.

    Nothing of a folder is trusted: what is damaged, foreign or of another model is a ValueError that
    names the file, and nothing but that folder is read.
    """
    folder = Path(folder)
    described, path = read_description(folder), folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is not there, or no plain file; copy the weights again")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    cls = MODELS[described.name]
    try:
        model: nn.Module = cls(_config(cls.Config, described.config))
    except MemoryError:
        raise
    except Exception as error:  # whatever a constructor says about numbers that cannot be
        raise ValueError(
            f"{folder}/config.json describes no {described.name} ({error}); put back a copy of it"
        ) from error
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is unknown" for key in weights if key not in own]
    wrong += [
        f"{key} is {tuple(weights[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise ValueError(
            f"{path} holds the weights of another model than config.json describes: "
            f"{'; '.join(wrong[:NAMED])}{more}; copy both files again"
        )
    bad = [
        key for key, one in weights.items() if one.is_floating_point() and not one.isfinite().all()
    ]
    if bad:
        raise ValueError(
            f"{path} holds values that are NaN or infinite ({', '.join(bad[:NAMED])}); copy it again, or "
            "train anew with a lower learning rate"
        )
    model.load_state_dict(weights)
    return model.eval()


def read_description(folder: str | Path) -> Described:
    """What the configuration beside weights says; one of another version or shape is refused."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no weights in {folder}: wanted config.json and model.safetensors there"
        )
    remedy = "put back a copy of it, with the weights that belong to it"
    if not path.is_file():
        raise ValueError(f"{path} is no plain file; {remedy}")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}); {remedy}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("config"), dict):
        raise ValueError(f"{path} describes no model; {remedy}")
    name, version = tree.get("class"), tree.get("format")
    if version != FORMAT or name not in list(MODELS):
        raise ValueError(
            f"{path} describes class {name!r} in format {version!r}; this version reads "
            f"{', '.join(MODELS)} in format {FORMAT}"
        )
    if name in ("TimmEncoder", "TimmHrNet"):
        _refuse_fetching(path, tree["config"])
    return Described(name, tree["config"])


def _refuse_fetching(path: Path, config: dict[str, Any]) -> None:
    """timm takes `hf-hub:` and `local-dir:` names, and fetches weights: not because a file says so."""
    backbone = config.get("backbone", "")
    if config.get("pretrained") not in (None, False) or not re.fullmatch(r"[\w.]*", str(backbone)):
        raise ValueError(
            f"{path} would have timm fetch {backbone!r}; weights that are whole need nothing from "
            "elsewhere: wanted the plain name of a model of timm, and pretrained false"
        )


def _config(cls: Any, described: dict[str, Any]) -> Any:
    """A configuration from JSON, which knows neither tuples nor classes."""
    kinds = typing.get_type_hints(cls)
    unknown = sorted(described.keys() - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    return cls(**{key: _value(key, value, kinds[key]) for key, value in described.items()})


def _value(key: str, value: Any, kind: Any) -> Any:
    """A value from JSON as the type of its field; one of another type is refused."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _value(key, value, parts[0])
    if origin is typing.Literal and value in list(parts):
        return value
    if origin in (typing.Union, types.UnionType):
        fitting = [part for part in parts if (part is types.NoneType) == (value is None)]
        for part in fitting[:-1]:
            with contextlib.suppress(ValueError):
                return _value(key, value, part)
        if fitting:
            return _value(key, value, fitting[-1])
    if origin is tuple and isinstance(value, list):
        several = parts[:1] * len(value) if parts[-1:] == (...,) else parts
        if len(several) == len(value):
            return tuple(_value(key, v, part) for v, part in zip(value, several, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _config(kind, value)
    if kind in (bool, str, int, types.NoneType) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return value
    raise ValueError(f"{key} is {value!r}, wanted {getattr(kind, '__name__', kind)}")

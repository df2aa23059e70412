"""The dense encoder of a run, and what it says: hard codes of crops, features on a grid of places."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch
import torch.nn.functional as F
from torch import Tensor

from em_train.dense.data import DataConfig
from em_train.engine.device import choose_device
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part

PIXELS_AT_ONCE = 1 << 20  # of a batch: the features of many more do not fit into caches


class StoredRun(NamedTuple):
    """What can be used of a run that has ended."""

    encoder: Any
    data: DataConfig  # which scale it was trained at


def open_run(run: Path) -> StoredRun:
    """The encoder of a dense-ssl run, on the device that the run chose, and what it read."""
    data = stored_part(run, "dense-ssl", "data", DataConfig)
    how = stored_part(run, "dense-ssl", "run", RunConfig)
    encoder: Any = em_models.load(run / "weights" / "encoder")
    return StoredRun(encoder.to(choose_device(how.device)).eval(), data)


class GridMaps(NamedTuple):
    """What an encoder says about the places (i · step, j · step) of a slice."""

    probabilities: Tensor  # (K, y, x)
    embedding: Tensor  # (E, y, x)


@torch.inference_mode()
def crop_codes(encoder: Any, crops: Tensor, *, dense: bool = False) -> Tensor:
    """Hard codes of crops in [0, 1]: (N, Y, X) -> (N, y, x), on the CPU."""
    device = next(encoder.parameters()).device
    codes = []
    for part in crops.split(max(1, PIXELS_AT_ONCE // crops[0].numel())):
        logits = encoder(part[:, None].to(device), dense=dense).logits
        codes.append(logits.argmax(1).cpu())
    return torch.cat(codes)


@torch.inference_mode()
def grid_maps(encoder: Any, plane: Tensor, step: int) -> GridMaps:
    """Codes at every `step`-th pixel of a slice (Y, X) in [0, 1], from pixel (0, 0) on.

    The slice is mirrored at its borders, so that encoders with other margins have codes at the same
    places; near the border they depend on the mirrored part.
    """
    geometry, device = encoder.geometry, next(encoder.parameters()).device
    before = geometry.margin
    mirrored = F.pad(plane[None, None], [before, geometry.trimmed - before] * 2, mode="reflect")
    strided = step % geometry.pitch == 0  # else the grid has places between the codes
    every = step // geometry.pitch if strided else step
    codes = encoder(mirrored.to(device), dense=not strided)
    height, width = (-(-n // step) for n in plane.shape)
    logits, embedding = (
        maps[0, :, ::every, ::every][:, :height, :width].float().cpu()
        for maps in (codes.logits, codes.embedding)
    )
    return GridMaps(logits.softmax(0), embedding)

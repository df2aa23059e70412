"""The dense encoder of a run, and what it says: hard codes of crops, features on a grid of places."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS_AT_ONCE = 1 << 20  # of a batch: the features of many more do not fit into caches


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

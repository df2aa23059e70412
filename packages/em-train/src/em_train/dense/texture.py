"""What a place looks like by hand-made features: the target that keeps embeddings close to the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from em_data import Box
from em_data.geometry import int3
from em_data.loader import Loader
from em_models import FilterBank
from torch import Tensor

from em_train.dense.data import DataConfig, learned

FITTED_PLACES, FITTED_VX = 8, 256  # windows of each volume that the filter bank is standardised by


def standardise(bank: FilterBank, loader: Loader, config: DataConfig) -> None:
    """Give all features of the filter bank the same weight, by places spread over the volumes."""
    images = []
    boxes = learned(loader.volumes, config)
    for volume, box, grey in zip(loader.volumes, boxes, loader.ranges, strict=True):
        side = min(FITTED_VX, *volume.shape[1:])
        for part in torch.linspace(0, 1, FITTED_PLACES).tolist():
            room = zip(box.origin_vx, box.size_vx, (1, side, side), strict=True)
            origin = int3([o + int(part * (n - s)) for o, n, s in room])
            images.append(torch.from_numpy(grey.unit(volume.read(Box(origin, (1, side, side))))))
    side = min(image.shape[-1] for image in images)
    bank.fit(torch.stack([image[..., :side, :side] for image in images]))


def features_of(bank: FilterBank, clean: Tensor, encoder: Any, pools: Sequence[int]) -> Tensor:
    """Features of the pixels that have codes: (B, 1, S + 2·rim, …) -> (B, F · pools, Y, X)."""
    geometry, most = encoder.geometry, max(pools) // 2
    cut = max(0, geometry.margin - bank.config.margin - most * geometry.pitch)
    rows = slice(cut, clean.shape[-1] - cut)
    features = bank(clean[..., rows, rows], step=geometry.pitch)
    pooled = []
    for pool in pools:
        off = most - pool // 2  # places that the largest window needs more
        inner = slice(off, features.shape[-1] - off)
        pooled.append(F.avg_pool2d(features[..., inner, inner], pool, 1))
    return torch.cat(pooled, 1)

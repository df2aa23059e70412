"""`emtrain predict` for runs of segment: classes or probabilities of a whole volume.

Tiles carry all that the network looks at around them, so they meet without a seam, and no byte
depends on blocks or processes. The thresholds are those that the run chose on its held-out slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from em_data import Box
from em_data.writer.tiling import as_uint8, predict_block

from em_train.engine.grey import choose
from em_train.engine.reading import open_raw
from em_train.predict.plan import Prediction, check_outputs, class_images, turned
from em_train.predict.tiles import grid_of, tile_model, tile_side
from em_train.segment.loss import probabilities
from em_train.segment.metrics import threshold_level
from em_train.segment.run import open_run


def plan(run: str, address: str, outputs: Sequence[str], tta: bool, grey: str) -> Prediction:
    """What a run says about a volume, at the level that the run was trained on.

    Outputs are `classes` (0 for none; where several are found, the last) and `probabilities`.
    """
    check_outputs(outputs, "segment")
    stored = open_run(Path(run))
    if not stored.network.config.local:
        raise ValueError(
            f"{run} was trained with group norm or squeeze-and-excitation: what it says depends on the "
            "tile, so there is no one prediction of a volume; train with model.unet.norm=batch"
        )
    volume = open_raw(address, stored.data, stored.data.at_nm)
    images = class_images(volume, outputs, stored.names, rest=True)
    grid = grid_of(stored.network, tile_side(stored.network, volume.shape))
    chosen = choose(Path(run), volume, grey)
    logits = tile_model(stored.network, chosen.range, stored.device, stored.precision)

    def tile(raw: np.ndarray) -> np.ndarray:
        return probabilities(torch.from_numpy(logits(raw)), stored.loss, dim=1).numpy()

    model = turned(tile) if tta else tile

    def compute(box: Box) -> Mapping[str, np.ndarray]:
        found = as_uint8(predict_block(volume, model, grid, box))  # (C, z, y, x)
        return {
            image.path: found if image.channels else class_map(found, stored.thresholds)
            for image in images
        }

    return Prediction(
        images=images,
        grid=grid,
        channels=len(stored.names),
        raw_itemsize=volume.dtype.itemsize,
        compute=compute,
        grey=chosen,
    )


def class_map(probability: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """The last class at or above its threshold, counted from 1: (C, z, y, x) uint8 -> (z, y, x).

    >>> class_map(np.array([[[[9, 200]]], [[[0, 130]]]], np.uint8), (0.5, 0.5)).tolist()
    [[[0, 2]]]
    """
    classes = np.zeros(probability.shape[1:], np.uint8)
    for number, (values, threshold) in enumerate(zip(probability, thresholds, strict=True), 1):
        classes[values >= threshold_level(threshold)] = number
    return classes

"""`emtrain predict` for runs of dense-ssl: classes, probabilities or embedding of a whole volume.

A code depends on the patch around its pixel and on nothing else, so tiles with a halo of half the
receptive field are exact: nothing has to be blended, and nobody can see where the tiles met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data import Box, GreyRange, ImageConfig, Volume, grey_range
from em_data.writer.tiling import Model, TileGrid, as_classes, as_uint8, check_finite, predict_block

from em_train.dense.run import open_run
from em_train.engine.reading import open_at
from em_train.predict.plan import Prediction, check_outputs, class_images, frame, turned

TILE_VX = 256  # side of a tile; with the features of one pixel at 64 channels about 16 MiB each


def plan(run: str, address: str, outputs: Sequence[str], tta: bool) -> Prediction:
    """What a run says about a volume, at the scale of the run.

    Outputs are `classes` and `probabilities`, or `embedding` (a channel per dimension).
    """
    check_outputs(outputs, "dense-ssl")
    if "embedding" in outputs and (tta or len(outputs) > 1):
        raise ValueError("an embedding is written alone, and without --tta: a mean of it is none")
    encoder, data = open_run(Path(run))
    if encoder.geometry.receptive_field is None:
        raise ValueError(
            f"a code of this encoder depends on the whole crop ({encoder.geometry.reason}), so no "
            "tile gives the codes of the volume; train an encoder that sees a patch"
        )
    volume = open_at(address, data)
    images, grid = described(encoder, volume, outputs), tile_grid(encoder, volume.shape)
    model = tile_function(encoder, grid, grey_range(volume), outputs, tta)

    def compute(box: Box) -> Mapping[str, np.ndarray]:
        found = predict_block(volume, model, grid, box)  # (C, z, y, x)
        if "probabilities" not in outputs:
            return {"": found if "embedding" in outputs else found[0].astype(np.uint8)}
        return {
            image.path: as_uint8(found) if image.channels else as_classes(found) for image in images
        }

    return Prediction(
        images=images,
        grid=grid,
        channels=len(images[0].channels) or 1,
        raw_itemsize=volume.dtype.itemsize,
        compute=compute,
    )


def described(encoder: Any, volume: Volume, outputs: Sequence[str]) -> tuple[ImageConfig, ...]:
    """The images that are written."""
    if "embedding" in outputs:
        axes = tuple(f"embedding {i}" for i in range(encoder.config.embedding))
        return (replace(frame(volume), dtype="float32", channels=axes),)
    names = [f"class {i}" for i in range(encoder.config.classes)]
    return class_images(volume, outputs, names, rest=False)


def tile_grid(encoder: Any, shape: Sequence[int]) -> TileGrid:
    """Tiles of one slice, with what the encoder sees around them."""
    geometry = encoder.geometry
    # A padded encoder has a code everywhere, but those near its border are not those of the volume.
    halo = max(-(-geometry.trimmed // 2), geometry.receptive_field // 2)
    side = min(TILE_VX, max(shape[1:]))
    return TileGrid(tile_vx=(1, side, side), halo_vx=(0, halo, halo))


def tile_function(
    encoder: Any, grid: TileGrid, grey: GreyRange, outputs: Sequence[str], tta: bool
) -> Model:
    """Raw tiles with halo (B, 1, Y, X) -> channels (B, C, 1, y, x), or classes (B, 1, 1, y, x)."""
    device = next(encoder.parameters()).device
    first = grid.halo_vx[1] - encoder.geometry.margin  # codes before the first one of the tile
    inside = (..., *(slice(first, first + n) for n in grid.tile_vx[1:]))

    @torch.inference_mode()
    def maps(raw: np.ndarray) -> np.ndarray:
        codes = encoder(torch.from_numpy(grey.unit(raw)).to(device), dense=True)
        if "embedding" in outputs:
            found = codes.embedding[inside]
        else:
            found = codes.logits[inside].float().softmax(1)
        channels: np.ndarray = found[:, :, None].float().cpu().numpy()
        return channels

    model = turned(maps) if tta else maps
    if "probabilities" in outputs or "embedding" in outputs:
        return model

    def classes(raw: np.ndarray) -> np.ndarray:  # in the tile: a block has one channel then
        found = model(raw)
        check_finite(found, raw)
        return found.argmax(1)[:, None]

    return classes

"""`emtrain predict` for runs of segment: classes or probabilities of a whole volume.

Tiles carry all that the network looks at around them, so they meet without a seam, and no byte
depends on blocks or processes. The thresholds are those that the run chose on its held-out slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from em_data import Box, Volume, begin_blocks, grey_range, open_volume
from em_data.blend import as_uint8, choose_block, predict_block
from em_data.stitch import CHUNK_VX, ImageConfig

from em_train.engine.crew import BlockJob, write_blocks
from em_train.engine.progress import say
from em_train.pictures import palette
from em_train.segment.loss import probabilities
from em_train.segment.metrics import threshold_level
from em_train.segment.tiles import StoredRun, grid_of, open_run, tile_model

TILE_VX = 256  # side of a tile: with its halo and the features of every level about 200 MiB


def predict(
    run: Path,
    address: str,
    out: Path,
    *,
    output: str = "classes",
    processes: int = 0,
    memory_gib: float = 2.0,
    resume: bool = False,
    overwrite: bool = False,
) -> bool:
    """Write what a run says about every voxel of a volume; False when a signal asked to stop.

    Args:
        run: folder of the run.
        address: the volume; the level that the run was trained on is read.
        out: OME-Zarr store.
        output: `classes` (a map of classes, 0 for none; where several are found, the last) or
            `probabilities` (a channel per class, as bytes).
        processes: how many write at once; 0: this one alone.
        memory_gib: for the blocks of all processes, beside the network itself.
        resume: go on with a store that was begun.
        overwrite: replace what is there.
    """
    stored, volume = opened(str(run), address)
    image, grid = described(stored, volume, output), grid_of(stored.network, TILE_VX)
    block = choose_block(
        volume.shape,
        grid,
        image.file_vx,
        budget_bytes=int(memory_gib * 2**30) // max(1, processes),
        channels=len(stored.names) + stored.loss.rest,
        raw_itemsize=volume.dtype.itemsize,
        stored_bytes=max(1, len(image.channels)),
        at_least=max(1, processes),
    )
    arguments = {"run": str(run.absolute()), "address": address, "output": output}
    store = begin_blocks(
        out,
        [image],
        block_vx=block.block_vx,
        config=arguments,
        resume=resume,
        overwrite=overwrite,
    )
    if store is None:
        say(f"{out} is whole already")
        return True
    job = BlockJob(store=str(out), make=f"{__name__}:make_blocks", arguments=arguments)
    with store:
        return write_blocks(job, store, processes=processes, what="predict")


def make_blocks(run: str, address: str, output: str) -> Callable[[Box], Mapping[str, np.ndarray]]:
    """The function from a box of voxels to what is written there."""
    stored, volume = opened(run, address)
    grid = grid_of(stored.network, TILE_VX)
    model = tile_model(stored.network, grey_range(volume), stored.device, stored.precision)

    def block(box: Box) -> Mapping[str, np.ndarray]:
        logits = torch.from_numpy(predict_block(volume, model, grid, box))  # (C, z, y, x)
        found = as_uint8(probabilities(logits, stored.loss).numpy())
        return {"": found if output == "probabilities" else class_map(found, stored.thresholds)}

    return block


def class_map(probability: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """The last class at or above its threshold, counted from 1: (C, z, y, x) uint8 -> (z, y, x).

    >>> class_map(np.array([[[[9, 200]]], [[[0, 130]]]], np.uint8), (0.5, 0.5)).tolist()
    [[[0, 2]]]
    """
    classes = np.zeros(probability.shape[1:], np.uint8)
    for number, (values, threshold) in enumerate(zip(probability, thresholds, strict=True), 1):
        classes[values >= threshold_level(threshold)] = number
    return classes


def opened(run: str, address: str) -> tuple[StoredRun, Volume]:
    """The run, and the volume at the level that the run was trained on."""
    stored = open_run(Path(run))
    if not stored.network.config.local:
        raise ValueError(
            f"{run} was trained with group norm or squeeze-and-excitation: what it says depends on the "
            "tile, so there is no one prediction of a volume; train with model.unet.norm=batch"
        )
    return stored, open_volume(address, at_nm=stored.data.at_nm)


def described(stored: StoredRun, volume: Volume, output: str) -> ImageConfig:
    """The image that is written."""
    shades = [(int(r), int(g), int(b)) for r, g, b in palette(len(stored.names))]
    image = ImageConfig(
        shape_vx=volume.shape,
        dtype="uint8",
        voxel_size_nm=volume.voxel_size_nm,
        origin_nm=volume.origin_nm,
        chunk_vx=CHUNK_VX,
    )
    if output == "classes":
        return replace(
            image, classes=("rest", *stored.names), colours=((0, 0, 0), *shades), pool="mode"
        )
    if output == "probabilities":
        return replace(image, channels=stored.names, colours=tuple(shades))
    raise ValueError(f"--output is {output!r}; of a segment run wanted classes or probabilities")

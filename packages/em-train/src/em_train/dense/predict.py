"""`emtrain predict` for runs of dense-ssl: classes, probabilities or embedding of a whole volume.

A code depends on the patch around its pixel and on nothing else, so tiles with a halo of half the
receptive field are exact: nothing has to be blended, and nobody can see where the tiles met.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data import Box, GreyRange, Volume, begin_blocks, grey_range
from em_data.blend import TileGrid, as_uint8, choose_block, predict_block
from em_data.geometry import Int3
from em_data.stitch import CHUNK_VX, ImageConfig

from em_train.dense.codes import open_run
from em_train.engine.crew import BlockJob, write_blocks
from em_train.engine.progress import say
from em_train.pictures import palette
from em_train.reading import open_at

TILE_VX = 256  # side of a tile; with the features of one pixel at 64 channels about 16 MiB each


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
        address: the volume; it is read at the scale of the run.
        out: OME-Zarr store.
        output: `classes` (a class map), `probabilities` (a channel per class, as bytes) or
            `embedding` (a channel per dimension).
        processes: how many write at once; 0: this one alone.
        memory_gib: for the blocks of all processes, beside the encoder itself.
        resume: go on with a store that was begun.
        overwrite: replace what is there.
    """
    volume, encoder, grid, _ = opened(str(run), address, output)
    image = described(encoder, volume, output)
    channels = len(image.channels) or encoder.config.classes
    block = choose_block(
        volume.shape,
        grid,
        image.file_vx,
        budget_bytes=int(memory_gib * 2**30) // max(1, processes),
        channels=1 if output == "classes" else channels,
        raw_itemsize=volume.dtype.itemsize,
        stored_bytes=np.dtype(image.dtype).itemsize * max(1, len(image.channels)),
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
    volume, _, grid, model = opened(run, address, output)

    def block(box: Box) -> Mapping[str, np.ndarray]:
        found = predict_block(volume, model, grid, box)  # (C, z, y, x)
        if output == "classes":
            return {"": found[0].astype(np.uint8)}
        return {"": as_uint8(found) if output == "probabilities" else found}

    return block


def opened(
    run: str, address: str, output: str
) -> tuple[Volume, Any, TileGrid, Callable[[np.ndarray], np.ndarray]]:
    """The volume at the scale of the run, the encoder, its tiles, and what it makes of them."""
    encoder, data = open_run(Path(run))
    volume = open_at(address, data)
    if encoder.geometry.receptive_field is None:
        raise ValueError(
            f"a code of this encoder depends on the whole crop ({encoder.geometry.reason}), so no "
            "tile gives the codes of the volume; train an encoder that sees a patch"
        )
    grid = tile_grid(encoder)
    return volume, encoder, grid, tile_function(encoder, grey_range(volume), output)


def tile_grid(encoder: Any) -> TileGrid:
    """Tiles of one slice, with what the encoder sees around them."""
    geometry = encoder.geometry
    # A padded encoder has a code everywhere, but those near its border are not those of the volume.
    halo = max(-(-geometry.trimmed // 2), geometry.receptive_field // 2)
    return TileGrid(tile_vx=(1, TILE_VX, TILE_VX), halo_vx=(0, halo, halo))


def tile_function(encoder: Any, grey: GreyRange, output: str) -> Callable[[np.ndarray], np.ndarray]:
    """Raw tiles with halo (B, 1, Y, X) -> classes (B, 1, 1, y, x), or channels (B, C, 1, y, x)."""
    device = next(encoder.parameters()).device
    halo = tile_grid(encoder).halo_vx[1]
    first = halo - encoder.geometry.margin  # codes before the first one of the tile

    @torch.inference_mode()
    def tile(raw: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(grey.unit(raw)).to(device)
        codes = encoder(image, dense=True)
        inside = (..., slice(first, first + TILE_VX), slice(first, first + TILE_VX))
        if output == "embedding":
            found = codes.embedding[inside]
        elif output == "probabilities":
            found = codes.logits[inside].float().softmax(1)
        else:
            found = codes.logits[inside].argmax(1, keepdim=True)
        return found[:, :, None].float().cpu().numpy()

    return tile


def described(encoder: Any, volume: Volume, output: str) -> ImageConfig:
    """The image that is written."""
    k = encoder.config.classes
    names = tuple(f"class {i}" for i in range(k))
    colours: tuple[Int3, ...] = tuple((int(r), int(g), int(b)) for r, g, b in palette(k))
    image = ImageConfig(
        shape_vx=volume.shape,
        dtype="uint8",
        voxel_size_nm=volume.voxel_size_nm,
        origin_nm=volume.origin_nm,
        chunk_vx=CHUNK_VX,
    )
    if output == "classes":
        if k > 256:
            raise ValueError(f"{k} classes do not fit into bytes; ask for probabilities")
        return dataclasses.replace(image, classes=names, colours=colours, pool="mode")
    if output == "probabilities":
        return dataclasses.replace(image, channels=names, colours=colours)
    if output == "embedding":
        axes = tuple(f"embedding {i}" for i in range(encoder.config.embedding))
        return dataclasses.replace(image, dtype="float32", channels=axes)
    raise ValueError(f"--output is {output!r}; wanted classes, probabilities or embedding")

"""`emtrain predict`: what a run says about every voxel of a volume, as OME-Zarr, block by block.

What differs from recipe to recipe, the network, its tiles and what is written, stands in
`<recipe>/predict.py` as a function `plan`. Every process calls it for itself: a model does not travel,
the folder it is loaded from does.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import ImageConfig, Volume, begin_blocks
from em_data.blend import Model, TileGrid, block_figures, choose_block
from em_data.geometry import Int3
from em_data.stitch import CHUNK_VX

from em_train.engine.crew import BlockFunction, BlockJob, write_blocks
from em_train.engine.dask_crew import workers_at
from em_train.engine.progress import say
from em_train.pictures import palette


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a run says about a volume, and what it takes to ask."""

    images: tuple[ImageConfig, ...]
    """What is written."""
    grid: TileGrid
    """How the volume is cut for the network, in voxels of the images."""
    channels: int
    """Values that a block holds for each of its voxels before they are stored."""
    raw_itemsize: int
    """Bytes of the volume behind one voxel of the images."""
    compute: BlockFunction
    """From a box to the voxels of every image there."""


def predict(
    module: str,
    run: Path,
    address: str,
    out: Path,
    *,
    outputs: Sequence[str] = ("classes",),
    tta: bool = False,
    processes: int = 0,
    dask: str | None = None,
    memory_gib: float = 2.0,
    block_vx: Int3 | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> bool:
    """Write what a run says about every voxel of a volume; False when a signal asked to stop.

    Args:
        module: where the `plan` of the run's recipe stands.
        run: folder of the run.
        address: the volume; it is read at the scale of the run.
        out: OME-Zarr store.
        outputs: what is written; which there are depends on the recipe. Of several, class maps become
            label images beside the others.
        tta: the mean of what the network says about a tile turned and mirrored in all eight ways.
        processes: how many write at once; 0: this one alone.
        dask: `local:N` for N workers of Dask, or the address of its scheduler, instead.
        memory_gib: for the blocks of all processes of this machine, beside the network and its tile;
            on a cluster for those of each worker.
        block_vx: what a process writes at once; without it what computes least within the memory. A
            store that is gone on with keeps its own. No voxel depends on it.
        resume: go on with a store that was begun.
        overwrite: replace what is there.
    """
    if dask and processes:
        raise ValueError("--processes are of this machine, --dask has its own; give one of them")
    workers = workers_at(dask) if dask else max(1, processes)
    budget_bytes = int(memory_gib * 2**30) // (workers or 1)
    arguments: dict[str, Any] = {
        **{"module": module, "run": str(run.absolute()), "address": address},
        **{"outputs": [*outputs], "tta": tta},
    }
    plan = _plan(**arguments)
    shape = plan.images[0].shape_vx
    cost = {
        "channels": plan.channels,
        "raw_itemsize": plan.raw_itemsize,
        "stored_bytes": sum(
            np.dtype(image.dtype).itemsize * max(1, len(image.channels)) for image in plan.images
        ),
    }
    if block_vx is None:
        block_vx = choose_block(
            shape,
            plan.grid,
            plan.images[0].file_vx,
            budget_bytes=budget_bytes,
            at_least=workers or 1,
            **cost,
        ).block_vx

    def check_memory(block_vx: Int3) -> int:
        peak_bytes = block_figures(shape, plan.grid, block_vx, **cost).peak_bytes
        if peak_bytes > budget_bytes:
            raise MemoryError(
                f"a block of {block_vx} voxels takes {peak_bytes / 2**20:.0f} MiB, and each process "
                f"has {budget_bytes / 2**20:.0f} MiB; allow more with --memory-gib, or take fewer "
                "processes or a smaller --block (where a store is begun already, with --overwrite)"
            )
        return peak_bytes

    check_memory(block_vx)
    store = begin_blocks(
        out,
        plan.images,
        block_vx=block_vx,
        config=arguments | {"weights": fingerprint(run)},
        resume=resume,
        overwrite=overwrite,
    )
    if store is None:
        say(f"{out} is whole already")
        return True
    with store:
        peak_bytes = check_memory(store.block_vx)
        size = " × ".join(map(str, store.block_vx))
        say(f"blocks of {size} voxels, {peak_bytes / 2**20:.0f} MiB each beside the network")
        make = f"{__name__}:make_blocks"
        job = BlockJob(store=str(out.absolute()), make=make, arguments=arguments)
        return write_blocks(job, store, processes=processes, dask=dask, what="predict")


def make_blocks(**arguments: Any) -> BlockFunction:
    """The function from a box of voxels to what is written there."""
    return _plan(**arguments).compute


def _plan(module: str, **asked: Any) -> Prediction:
    plan: Prediction = importlib.import_module(module).plan(**asked)
    return plan


def fingerprint(run: Path) -> str:
    """Of all that a run has learned: a prediction is not gone on with by another network."""
    digest = hashlib.sha256()
    for path in (*sorted((run / "weights").rglob("*")), run / "classes.json"):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# What recipes have in common ---------------------------------------------------------------------


def check_outputs(outputs: Sequence[str], known: Sequence[str], recipe: str) -> None:
    """Refuse what runs of a recipe do not have."""
    if not outputs or not set(outputs) <= set(known):
        raise ValueError(
            f"--output is {','.join(outputs)!r}; of a {recipe} run wanted {' or '.join(known)}"
            + (", or both as classes,probabilities" if "classes" in known else "")
        )


def class_images(
    volume: Volume, outputs: Sequence[str], names: Sequence[str], *, rest: bool
) -> tuple[ImageConfig, ...]:
    """A channel of bytes per class, or a map of classes, or the map as a label image beside them.

    With `rest` value 0 of the map is none of the classes, and they are counted from 1.
    """
    shades = tuple((int(r), int(g), int(b)) for r, g, b in palette(len(names)))
    image = frame(volume)
    images = []
    if "probabilities" in outputs:
        images.append(replace(image, channels=tuple(names), colours=shades))
    if "classes" in outputs:
        classes = (("rest",) if rest else ()) + tuple(names)
        if len(classes) > 256:
            raise ValueError(f"{len(classes)} classes do not fit into bytes; ask for probabilities")
        black = ((0, 0, 0),) * rest
        label = "classes" if images else None
        images.append(
            replace(image, label=label, classes=classes, colours=black + shades, pool="mode")
        )
    return tuple(images)


def frame(volume: Volume) -> ImageConfig:
    """An image of bytes with the voxels of a volume."""
    return ImageConfig(
        shape_vx=volume.shape,
        dtype="uint8",
        voxel_size_nm=volume.voxel_size_nm,
        origin_nm=volume.origin_nm,
        chunk_vx=CHUNK_VX,
    )


def turned(model: Model) -> Model:
    """The mean of what a model says about tiles turned and mirrored in all eight ways.

    One after the other, so that it takes no more memory than two of them.
    """

    def tile(raw: np.ndarray) -> np.ndarray:
        total: np.ndarray | None = None
        for turns, mirrored in itertools.product(range(4), (False, True)):
            seen = np.rot90(raw, turns, (-2, -1))
            found = model(np.ascontiguousarray(seen[..., ::-1] if mirrored else seen))
            found = np.rot90(found[..., ::-1] if mirrored else found, -turns, (-2, -1))
            total = found.astype(np.float32) if total is None else np.add(total, found, out=total)
        assert total is not None
        total /= 8
        return total

    return tile

"""`emtrain predict`: what a run says about every voxel of a volume, as OME-Zarr, block by block.

Of a collection of images it is a folder of pictures, see `em_train.predict.images`.

What differs from recipe to recipe, the network, its tiles and what is written, stands in
`<recipe>/predict.py` as a function `plan`. Every process calls it for itself: a model does not travel,
the folder it is loaded from does.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from em_data import begin_blocks
from em_data.geometry import Int3
from em_data.writer.block_cost import block_figures, choose_block
from em_data.writer.place import check_apart

from em_train.engine.progress import say
from em_train.engine.reading import gib_bytes, is_collection
from em_train.engine.run_folder import read_by
from em_train.predict.block_job import BlockFunction, BlockJob
from em_train.predict.crew import write_blocks
from em_train.predict.dask_workers import workers_at
from em_train.predict.images import predict_images
from em_train.predict.plan import Prediction

# Every process lists all blocks, and each leaves a marker on the disk until the store is whole.
MOST_BLOCKS = 10**7


def predict(
    module: str,
    run: Path,
    address: str,
    out: Path,
    *,
    outputs: Sequence[str] = ("classes",),
    tta: bool = False,
    grey: str = "auto",
    processes: int = 0,
    dask: str | None = None,
    memory_gib: float = 2.0,
    block_vx: Int3 | None = None,
    resume: bool = False,
    overwrite: bool = False,
    more: Mapping[str, Any] | None = None,
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
        grey: which grey values become 0 and 1, as `em_train.engine.grey.choose` takes it.
        processes: how many write at once; 0: this one alone.
        dask: `local:N` for N workers of Dask, or the address of its scheduler, instead.
        memory_gib: for the blocks of all processes of this machine, beside the network and its tile;
            on a cluster for those of each worker.
        block_vx: what a process writes at once; without it what computes least within the memory. A
            store that is gone on with keeps its own. No voxel depends on it.
        resume: go on with a store that was begun.
        overwrite: replace the store that is there.
        more: options that only some recipes know, as the `OPTIONS` of the module name them.
    """
    if is_collection(address):
        if processes or dask or block_vx:
            raise ValueError(
                f"{address} is a collection, whose images are predicted one after another in this "
                "process; leave --processes, --dask and --block out"
            )
        asked = {"outputs": [*outputs], "tta": tta, "grey": grey, **(more or {})}
        return _predict_images(module, run, address, out, asked, resume=resume, overwrite=overwrite)
    if dask and processes:
        raise ValueError("--processes are of this machine, --dask has its own; give one of them")
    workers = workers_at(dask) if dask else max(1, processes)
    budget_bytes = gib_bytes(memory_gib, "--memory-gib") // (workers or 1)
    arguments: dict[str, Any] = {
        **{"module": module, "run": str(run.absolute()), "address": address},
        **{"outputs": [*outputs], "tta": tta, "grey": grey},
        **(more or {}),
    }
    inputs: list[str | Path] = [run, address, *read_by(run)]
    check_apart(out, inputs)  # before anything is computed
    plan = _plan(**arguments)
    if plan.grey:  # for all processes the same, to the last digit, and stored with what is written
        arguments["grey"] = ",".join(map(repr, plan.grey.ends))
        say(f"grey    {plan.grey}")
    shape = plan.images[0].shape_vx
    cost = {
        "channels": plan.channels,
        "raw_itemsize": plan.raw_itemsize,
        "stored_bytes": sum(
            np.dtype(image.dtype).itemsize * max(1, len(image.channels)) for image in plan.images
        ),
    }
    if block_vx is None:
        file_vx = plan.images[0].file_vx
        if plan.whole_slices:
            y, x = (-(-n // f) * f for n, f in zip(shape[1:], file_vx[1:], strict=True))
            file_vx = (file_vx[0], y, x)
        block_vx = choose_block(
            shape,
            plan.grid,
            file_vx,
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
    check_count(address, shape, block_vx)
    store = begin_blocks(
        out,
        plan.images,
        block_vx=block_vx,
        config=arguments | {"weights": fingerprint_run(run)},
        resume=resume,
        overwrite=overwrite,
        inputs=inputs,
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


def check_count(address: str, shape: Int3, block_vx: Int3) -> None:
    """Refuse more blocks than can be counted one by one."""
    blocks = math.prod(-(-n // b) for n, b in zip(shape, block_vx, strict=True))
    if blocks > MOST_BLOCKS:
        raise ValueError(
            f"{address} of {shape} voxels would be written in {blocks:,} blocks of {block_vx}; wanted "
            f"{MOST_BLOCKS:,} at most: take larger blocks with --block and --memory-gib, or a part of "
            "the volume"
        )


def _predict_images(
    module: str,
    run: Path,
    address: str,
    out: Path,
    asked: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
) -> bool:
    """The same of a collection of images, as a folder of pictures."""
    pictures = getattr(importlib.import_module(module), "pictures", None)
    if pictures is None:
        raise ValueError(
            f"{address} is a collection of images, and {run} is a run that predicts volumes; give it "
            "one volume"
        )
    return predict_images(
        run,
        address,
        out,
        pictures(str(run.absolute()), **asked),
        {"run": str(run.absolute()), "address": address, **asked, "weights": fingerprint_run(run)},
        resume=resume,
        overwrite=overwrite,
    )


def make_blocks(**arguments: Any) -> BlockFunction:
    """The function from a box of voxels to what is written there."""
    return _plan(**arguments).compute


def _plan(module: str, **asked: Any) -> Prediction:
    plan: Prediction = importlib.import_module(module).plan(**asked)
    return plan


def fingerprint_run(run: Path) -> str:
    """Of all that a run has learned: a prediction is not gone on with by another network."""
    digest = hashlib.sha256()
    for path in (*sorted((run / "weights").rglob("*")), run / "classes.json"):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

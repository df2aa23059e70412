"""`emtrain speed`: how fast crops come out of a volume, and where the time goes.

It measures the loader that recipes train with. Where the time goes is asked of the threads
themselves: every few milliseconds, what each of them is doing. So nothing is slowed down or
instrumented, and it works for every format.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import FrameType
from typing import Any

from em_data import (
    BlockSampler,
    CubeConfig,
    PlaceSampler,
    StackConfig,
    Volume,
    choose_sampler,
    open_volume,
)
from em_data.geometry import Int3, int3
from em_data.loader import Loader
from rich import box
from rich.console import Console
from rich.table import Table

from em_train.look.info import list_text

BATCH = 8
EPOCH = 1 << 20  # samples: more than can be drawn in the time
INTERVAL_S = 0.002
FILLING = 0.4  # share of the time that may go by before measuring begins
READING, DECODING, BOTH = "reading bytes", "decoding", "reading and decoding"
PLACING, CUTTING, COLLATING = "placing chunks", "cutting crops", "collating"
WAITING = "waiting for readers"
# What a thread is doing, by the innermost of its functions that is named here: a file, or a function
# in a file. Libraries that read and decode in one call cannot be told apart.
STAGES = {
    ("zarr_chunks.py", "_file_bytes"): READING,
    ("zarr_chunks.py", "_open_shard"): READING,
    ("zarr_chunks.py", "chunk"): READING,
    ("zarr_chunks.py", "_decode"): DECODING,
    ("zarr_chunks.py", "read"): PLACING,
    ("location.py", "get"): READING,
    ("slices.py", None): BOTH,
    ("volume.py", "read"): BOTH,
    ("gather.py", "cut"): CUTTING,
    ("loader.py", "_collate"): COLLATING,
    ("loader.py", "result"): WAITING,
    ("_base.py", "result"): WAITING,
}


def reading_speed(
    source: str,
    *,
    channel: int | str | None = None,
    stack_vx: Int3 = (5, 256, 256),
    cube_vx: Int3 = (64, 64, 64),
    seconds: float = 10.0,
    threads: int = 2,
    budget_bytes: int = 2**28,
) -> dict[str, Any]:
    """Crops per second of stacks and cubes, in about `seconds`, with what the time was spent on."""
    for name, size in (("stack", stack_vx), ("cube", cube_vx)):
        if min(size) < 1:
            raise ValueError(f"a {name} of {size} voxels is empty; wanted at least 1 on every axis")
    if seconds <= 0 or threads < 1:
        raise ValueError(f"{seconds:g} seconds and {threads} threads; wanted more than 0 of both")
    began = time.perf_counter()
    volume = open_volume(source, channel=channel)
    found: dict[str, Any] = {
        "volume": str(volume),
        "opening (s)": round(time.perf_counter() - began, 3),
        "threads": threads,
        "memory (MiB)": budget_bytes >> 20,
    }
    if volume.nbytes <= budget_bytes:  # as recipes do
        began = time.perf_counter()
        volume = volume.held_in_memory()
        found["reading it into memory (s)"] = round(time.perf_counter() - began, 3)
    depth, *window = _clipped(stack_vx, volume)
    square = min(window)
    middle = depth // 2
    stacks = StackConfig(size_vx=square, offsets_z=tuple(range(-middle, depth - middle)))
    cubes = CubeConfig(size_vx=_clipped(cube_vx, volume))
    found["crops"] = [
        _measure_crops(volume, config, seconds / 2, threads, budget_bytes)
        for config in (stacks, cubes)
    ]
    return found


def print_speed(found: dict[str, Any]) -> None:
    """Print what `measure` found as tables."""
    console = Console(soft_wrap=True)
    console.print(found["volume"], markup=False)
    for name in ("opening (s)", "reading it into memory (s)"):
        if name in found:
            console.print(f"{name.removesuffix(' (s)')} takes {found[name]:g} s")
    table = Table("crop", "crops/s", "MB/s", "decoded MB/s", "from", box=box.SIMPLE_HEAD)
    for row in found["crops"]:
        figures = (f"{row[key]:,.0f}" for key in ("crops/s", "MB/s", "decoded MB/s"))
        table.add_row(row["crop"], *figures, row["from"])
    console.print(table)
    stages = sorted({stage for row in found["crops"] for stage in row["where the time goes"]})
    if any(row["from"].endswith("filling") for row in found["crops"]):
        console.print("while blocks are being filled every crop waits for one; give more --seconds")
    table = Table(
        "where the time goes", *(row["crop"] for row in found["crops"]), box=box.SIMPLE_HEAD
    )
    for stage in stages:
        shares = (row["where the time goes"].get(stage, 0) for row in found["crops"])
        table.add_row(stage, *(f"{share:.0%}" for share in shares))
    console.print(table)


def _clipped(size_vx: Int3, volume: Volume) -> Int3:
    return int3([min(s, n) for s, n in zip(size_vx, volume.shape, strict=True)])


def _measure_crops(
    volume: Volume,
    config: StackConfig | CubeConfig,
    seconds: float,
    threads: int,
    budget_bytes: int,
) -> dict[str, Any]:
    sampler = choose_sampler(
        [volume],
        config,
        seed=0,
        samples_per_epoch=EPOCH,
        slots=BATCH,
        budget_bytes=budget_bytes,
    )
    loader = Loader([volume], sampler, batch_size=BATCH, samples_per_epoch=EPOCH, threads=threads)
    _ = loader.ranges  # measured once a run
    # Until every position of every slot holds a block, each crop has a block of its own to wait for.
    to_fill = sampler.plan.positions if isinstance(sampler, BlockSampler) else 1
    began = time.perf_counter()
    batches = loader.batches(0, EPOCH)
    for step, _ in enumerate(batches, 1):
        if step >= to_fill or time.perf_counter() - began > FILLING * seconds:
            break
    filled, filling_s = step >= to_fill, time.perf_counter() - began
    before = (loader.counts.samples, loader.counts.served_bytes, loader.counts.decoded_bytes)
    again = time.perf_counter()
    with _watching() as stages:
        for _ in batches:
            if time.perf_counter() - began > seconds:
                break
    elapsed = time.perf_counter() - again
    after = (loader.counts.samples, loader.counts.served_bytes, loader.counts.decoded_bytes)
    batches.close()  # type: ignore[attr-defined]
    samples, served, decoded = (b - a for a, b in zip(before, after, strict=True))
    return {
        "crop": list_text(config.crop_vx),
        "crops/s": samples / elapsed,
        "MB/s": served / elapsed / 1e6,
        "decoded MB/s": decoded / elapsed / 1e6,
        "from": _source(sampler, filled, filling_s),
        "where the time goes": _shares(stages),
    }


def _source(sampler: PlaceSampler | BlockSampler, filled: bool, filling_s: float) -> str:
    if isinstance(sampler, PlaceSampler):
        return "memory"
    return f"blocks, filled in {filling_s:.1f} s" if filled else "blocks, still filling"


def _shares(stages: Counter[str]) -> dict[str, float]:
    total = max(1, stages.total())
    return {stage: round(count / total, 4) for stage, count in stages.most_common()}


@contextmanager
def _watching() -> Iterator[Counter[str]]:
    """Count what the threads of this process are doing."""
    stages: Counter[str] = Counter()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL_S):
            for thread, frame in sys._current_frames().items():
                if thread != threading.get_ident():
                    stages.update(_stage(frame))

    watcher = threading.Thread(target=watch, name="emtrain speed", daemon=True)
    watcher.start()
    try:
        yield stages
    finally:
        done.set()
        watcher.join()


def _stage(frame: FrameType | None) -> Iterator[str]:
    """What a thread is doing; nothing for one that is idle."""
    while frame is not None:
        code = frame.f_code
        file = PurePath(code.co_filename).name
        for key in ((file, code.co_name), (file, None)):
            if key in STAGES:
                yield STAGES[key]
                return
        frame = frame.f_back

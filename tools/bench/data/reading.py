"""Crops per second out of a volume larger than memory: block shuffle beside what people use today.

    python tools/bench/data/reading.py [--quick] [--json PATH] [--volume PATH]

The volume has real texture: fib25 (EM_REAL_DATA, or ../shared/data beside the repository) tiled with
random flips and noise; chunks of 64³ voxels, zstd, 8 × the memory budget. Every reader runs in this
process, one after the other in turns, from a cold start each time, with the same bytes of cache (block
shuffle: its budget; tensorstore: its cache pool; zarr-python and zarrs have none), and fills batches
of 8 crops. Block shuffle serves at least 3 turnovers of its budget in each turn. Near-duplicates are
crops that overlap one of the 1024 before by more than half.

`cpu` counts processor time of all threads, `wall` what a clock shows. The limits are decoding the
bytes of the crops once, and copying them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
import zarr
from em_data import CubeConfig, Key, PlaceSampler, choose_sampler, describe, open_volume
from em_data.loader import Loader
from numcodecs import Zstd
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

BATCH = 8
CHUNK = 64
CROPS = {"64 × 64 × 64": (64, 64, 64), "5 × 256 × 256": (5, 256, 256)}
FOREVER = 10**9

Crop = tuple[int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller volume, one turn")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--volume", type=Path, metavar="PATH", help="keep the volume here")
    options = parser.parse_args()
    budget = (128 if options.quick else 256) * 2**20
    turns = 1 if options.quick else 5
    with tempfile.TemporaryDirectory() as temporary:
        path = options.volume or Path(temporary) / "volume.zarr"
        make_volume(path, budget)
        rows = [row for crop in CROPS for row in measure(path, crop, budget, turns)]
    show(rows)
    if options.json:
        conditions = {
            "volume": "fib25 tiled with flips and noise, chunks 64³, zstd, 8 × the budget",
            "budget_bytes": budget,
            "batch": BATCH,
            "turns": turns,
            "threads": 2,
            "versions": {m.__name__: m.__version__ for m in (np, zarr, torch)},
        }
        write(options.json, conditions, rows)


def make_volume(path: Path, budget: int) -> None:
    """A volume of 8 budgets with real texture; one that is there already is used again."""
    side = -(-round((8 * budget) ** (1 / 3)) // CHUNK) * CHUNK
    if path.exists():
        return
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    source = Path(os.environ.get("EM_REAL_DATA", beside)) / "fib25.zarr" / "sample1_raw"
    texture = open_volume(source)[:, :, :]
    rng = np.random.default_rng(0)
    target = zarr.create_array(path, shape=(side,) * 3, chunks=(CHUNK,) * 3, dtype="u1")
    for z in track(range(0, side, CHUNK), description=f"writing {side}³ voxels"):
        slab = np.empty((CHUNK, side, side), np.uint8)
        for y in range(0, side, 192):
            for x in range(0, side, 192):
                start = rng.integers(0, 250 - CHUNK)
                flips = tuple(slice(None, None, step) for step in rng.choice([-1, 1], 3))
                tile = texture[start : start + CHUNK][flips][:, :192, :192]
                place = slab[:, y : y + 192, x : x + 192]
                place[:] = tile[:, : place.shape[1], : place.shape[2]]
        noise = rng.integers(-2, 3, slab.shape, np.int8)
        target[z : z + CHUNK] = np.clip(slab.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def measure(path: Path, name: str, budget: int, turns: int) -> list[dict[str, Any]]:
    """Rows of one kind of crop: the readers by processor time, the loaders by the clock."""
    crop = CROPS[name]
    config = CubeConfig(size_vx=crop)
    volume = open_volume(path)
    sampler = choose_sampler(
        [volume], config, seed=0, samples_per_epoch=FOREVER, slots=BATCH, budget_bytes=budget
    )
    served = 3 * budget // int(np.prod(crop))  # three turnovers
    print(f"{name}: {describe(sampler, [volume], samples=served)}")
    few = max(BATCH, min(served, 400) // BATCH * BATCH)
    readers: dict[str, tuple[Callable[[], Iterator[np.ndarray]], int]] = {
        "ours": (lambda: block_shuffle(path, sampler), served),
        "tensorstore": (lambda: tensorstore_crops(path, config, budget), few),
        "zarr-python": (lambda: zarr_crops(path, config), few // 2),
        "decode": (lambda: decoding(path, crop), few),
        "memcpy": (lambda: copying(crop), served),
    }
    try:
        import zarrs  # noqa: F401

        readers["zarrs"] = (lambda: zarr_crops(path, config, "zarrs.ZarrsCodecPipeline"), few)
    except ImportError:
        print("zarrs is not installed, its figures are left out: pip install zarrs")
    cpu: dict[str, list[float]] = {reader: [] for reader in readers}
    wall: dict[str, list[float]] = {reader: [] for reader in [*readers, "DataLoader"]}
    for _ in range(turns):
        for reader, (start, count) in readers.items():
            seconds, clock = run(start(), count)
            cpu[reader].append(count / seconds)
            wall[reader].append(count / clock)
        wall["DataLoader"].append(data_loader(path, crop, budget, few))
    shared = {
        "near_duplicates_ours": near_duplicates(sampler, served),
        "near_duplicates_independent": near_duplicates(
            PlaceSampler([volume.shape], config, 0), served
        ),
        "resident_blocks": sampler.plan.positions * BATCH,
        "crops_of_a_block": sampler.plan.crops,
    }
    rows = []
    for unit, figures in (("crops per CPU second", cpu), ("crops per second", wall)):
        row: dict[str, Any] = {"case": f"read {name}", "unit": unit}
        for reader, values in figures.items():
            row["limit" if reader == "decode" else reader] = statistics.median(values)
            row[f"{reader}_spread"] = [min(values), max(values)]
        rows.append(row | shared)
    return rows


def run(crops: Iterator[np.ndarray], count: int) -> tuple[float, float]:
    """Processor seconds and seconds that `count` crops take, from the very start."""
    cpu, clock = time.process_time(), time.perf_counter()
    taken = 0
    while taken < count:
        taken += len(next(crops))
    crops.close() if hasattr(crops, "close") else None
    return time.process_time() - cpu, time.perf_counter() - clock


def block_shuffle(path: Path, sampler: Any) -> Iterator[np.ndarray]:
    loader = Loader([open_volume(path)], sampler, batch_size=BATCH, samples_per_epoch=FOREVER)
    for batch in loader.batches(0, FOREVER):
        yield batch.raw.numpy()


def open_tensorstore(path: Path, budget: int) -> Any:
    return tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}},
        context=tensorstore.Context({"cache_pool": {"total_bytes_limit": budget}}),
        read=True,
    ).result()


def tensorstore_crops(path: Path, config: CubeConfig, budget: int) -> Iterator[np.ndarray]:
    store = open_tensorstore(path, budget)
    for boxes in random_boxes(store.shape, config):
        futures = [store[box].read() for box in boxes]
        yield np.stack([future.result() for future in futures])


def zarr_crops(path: Path, config: CubeConfig, pipeline: str | None = None) -> Iterator[np.ndarray]:
    with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
        store = zarr.open_array(path, mode="r")
        for boxes in random_boxes(store.shape, config):
            yield np.stack([store[box] for box in boxes])


def random_boxes(shape: tuple[int, ...], config: CubeConfig) -> Iterator[list[Any]]:
    sampler = PlaceSampler([shape], config, seed=1)  # type: ignore[list-item]
    for first in range(0, FOREVER, BATCH):
        yield [sampler(Key(0, first + i)).box.slices for i in range(BATCH)]


def decoding(path: Path, crop: Crop) -> Iterator[np.ndarray]:
    """Decode as many bytes as the crops have, each chunk used whole."""
    files = sorted(path.glob("c/*/*/*"))[:64]
    codec, encoded = Zstd(), [file.read_bytes() for file in files]
    chunks, number = BATCH * np.prod(crop) / CHUNK**3, 0.0
    while True:
        for i in range(int(number), int(number + chunks)):
            codec.decode(encoded[i % len(encoded)])
        number += chunks
        yield np.empty(BATCH)


def copying(crop: Crop) -> Iterator[np.ndarray]:
    """Copy crops out of memory that no cache holds."""
    source = np.zeros((64 * BATCH, *crop), np.uint8)
    for first in range(0, FOREVER, BATCH):
        start = first % (64 * BATCH)
        yield source[start : start + BATCH].copy()


class Crops(torch.utils.data.Dataset):
    """What a project without a loader of its own would write."""

    def __init__(self, path: Path, crop: Crop, budget: int) -> None:
        self.path, self.config, self.budget = path, CubeConfig(size_vx=crop), budget
        self.store: Any = None

    def __len__(self) -> int:
        return FOREVER

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.store is None:  # opened in the worker
            self.store = open_tensorstore(self.path, self.budget // 2)
            self.sampler = PlaceSampler([self.store.shape], self.config, seed=1)
        box = self.sampler(Key(0, index)).box
        return torch.from_numpy(self.store[box.slices].read().result())


def data_loader(path: Path, crop: Crop, budget: int, count: int) -> float:
    """Crops per second of a torch DataLoader with two spawned workers, once they have started."""
    loader = torch.utils.data.DataLoader(
        Crops(path, crop, budget), BATCH, num_workers=2, multiprocessing_context="spawn"
    )
    batches = iter(loader)
    for _ in range(4):  # what the workers made while starting does not count
        next(batches)
    clock = time.perf_counter()
    for _ in range(count // BATCH):
        next(batches)
    seconds = time.perf_counter() - clock
    del batches
    return count / seconds


def near_duplicates(sampler: Any, count: int, window: int = 1024) -> float:
    """Share of the last samples that overlap one of the `window` before them by more than half."""
    size = np.array(sampler.config.crop_vx)
    recent: deque[np.ndarray] = deque(maxlen=window)
    found = []
    for number in range(count):
        origin = np.array(sampler(Key(0, number)).box.origin_vx)
        if recent:
            apart = np.abs(np.array(recent) - origin) / size
            found.append(bool((np.clip(1 - apart, 0, None).prod(1) > 0.5).any()))
        recent.append(origin)
    return sum(found[-window:]) / len(found[-window:])


def show(rows: list[dict[str, Any]]) -> None:
    peers = ("tensorstore", "zarr-python", "zarrs", "DataLoader", "limit", "memcpy")
    table = Table("case", "unit", "ours", *(f"{peer} (×)" for peer in peers), "near-duplicates")
    for row in rows:
        cells = [
            f"{row[peer]:,.0f} ({row['ours'] / row[peer]:.2f})" if peer in row else ""
            for peer in peers
        ]
        duplicates = f"{row['near_duplicates_ours']:.1%}, independent {row['near_duplicates_independent']:.1%}"
        table.add_row(row["case"], row["unit"], f"{row['ours']:,.0f}", *cells, duplicates)
    print_table(table, width=160)


if __name__ == "__main__":
    main()

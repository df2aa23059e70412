"""A collection of many small images: how long until the first batch, and how much memory it takes.

    python tools/bench/data/images.py [--quick] [--json PATH] [--folder PATH]

50,000 grey PNG files of 64 to 160 pixels a side, copies of 64 that are smooth noise, in one folder.
Each reader runs in a fresh process, the readers in turns: it lists the folder, learns the sizes, and
serves batches of 32 crops of 64 × 64. Memory is what the process holds more after its last batch than
before it began (resident set), so imports do not count. `Pillow` is what a project without a loader of
its own would write: a list of paths and sizes, and a torch DataLoader in this process. The files are in
the page cache. Speed is by processor time of all threads; its limit is decoding the images with Pillow
and nothing else.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from em_data import PlaceSampler, StackConfig, open_images
from em_data.loader import Loader
from PIL import Image
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

BATCH = 32
SIDE = 64
KINDS = 64  # different images
FOREVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5,000 images, one turn")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--folder", type=Path, metavar="PATH", help="keep the images here")
    options = parser.parse_args()
    count, turns = (5_000, 1) if options.quick else (50_000, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "images"
        make_images(folder, count)
        rows = measure(folder, count, turns)
    show(rows)
    if options.json:
        conditions = {
            "images": f"{count} PNG of 64 to 160 px a side, in the page cache",
            "batch": f"{BATCH} crops of {SIDE} × {SIDE}",
            "turns": turns,
            "threads": 2,
            "versions": {m.__name__: m.__version__ for m in (np, PIL, torch)},
        }
        write(options.json, conditions, rows)


def make_images(folder: Path, count: int) -> None:
    """Images of many sizes; a folder that is there already is used again."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    encoded = []
    for number in range(KINDS):
        height, width = rng.integers(SIDE, 161, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4), np.uint8))
        path = folder / f"{number:06}.png"
        coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)
        encoded.append(path.read_bytes())
    for number in track(range(KINDS, count), description=f"writing {count} images"):
        (folder / f"{number:06}.png").write_bytes(encoded[number % KINDS])


def measure(folder: Path, count: int, turns: int) -> list[dict[str, Any]]:
    """Rows of time, memory and speed; each reader in a process of its own."""
    readers = {"ours": ours, "Pillow": pillow, "decode": decoding}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(turns):
        for name, reader in readers.items():
            with spawn.Pool(1) as pool:
                found[name].append(pool.apply(run, (reader, folder, 100)))
    units = {
        "list and sizes": "s",
        "first batch": "s",
        "memory": "MiB",
        "crops": "per CPU second",
    }
    rows = []
    for case, unit in units.items():
        row: dict[str, Any] = {"case": f"{case}, {count} images", "unit": unit}
        for name, turns_of in found.items():
            values = [turn[case] for turn in turns_of if case in turn]
            if values:
                row["limit" if name == "decode" else name] = statistics.median(values)
                row[f"{name}_spread"] = [min(values), max(values)]
        rows.append(row)
    return rows


def run(reader: Callable[[Path], Iterator[Any]], folder: Path, batches: int) -> dict[str, float]:
    """Figures of one reader, whose first yield says that it knows the images."""
    torch.set_num_threads(1)
    before = resident_mib()
    began = time.perf_counter()
    steps = reader(folder)
    next(steps)
    listed = time.perf_counter() - began
    next(steps)
    first = time.perf_counter() - began
    again = time.process_time()
    for _ in range(batches):
        next(steps)
    seconds = time.process_time() - again
    found = {"crops": batches * BATCH / seconds}
    if reader is not decoding:
        found |= {"list and sizes": listed, "first batch": first}
        found["memory"] = resident_mib() - before
    return found


def resident_mib() -> float:
    """Memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours(folder: Path) -> Iterator[Any]:
    images = open_images(f"images:{folder}")
    yield None
    sampler = PlaceSampler(images.shapes, StackConfig(size_vx=SIDE, offsets_z=(0,)), seed=0)
    loader = Loader(images, sampler, batch_size=BATCH, samples_per_epoch=len(images))
    yield from loader.batches(0, FOREVER)


class Crops(torch.utils.data.Dataset):
    """Paths, sizes, and a random crop of a random image."""

    def __init__(self, folder: Path) -> None:
        self.images = []
        for path in sorted(folder.glob("*.png")):
            with Image.open(path) as image:
                self.images.append((path, image.size))

    def __len__(self) -> int:
        return FOREVER

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng(index)
        path, (width, height) = self.images[rng.integers(len(self.images))]
        y, x = (int(rng.integers(n - SIDE + 1)) for n in (height, width))
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.crop((x, y, x + SIDE, y + SIDE))))


def pillow(folder: Path) -> Iterator[Any]:
    crops = Crops(folder)
    yield None
    yield from torch.utils.data.DataLoader(crops, BATCH)


def decoding(folder: Path) -> Iterator[Any]:
    """Batches of images that are decoded and not used."""
    paths = sorted(folder.glob("*.png"))[:4096]
    yield None
    for first in range(0, FOREVER, BATCH):
        for number in range(first, first + BATCH):
            with Image.open(paths[number % len(paths)]) as image:
                image.load()
        yield None


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("case", "unit", "ours", "Pillow (×)", "limit (×)")
    for row in rows:
        cells = [
            f"{row[peer]:,.4g} ({row['ours'] / row[peer]:.2f})" if peer in row else ""
            for peer in ("Pillow", "limit")
        ]
        table.add_row(row["case"], row["unit"], f"{row['ours']:,.4g}", *cells)
    print_table(table, width=120)


if __name__ == "__main__":
    main()

"""Milliseconds that augmentation takes per sample, on one thread, and a picture of what it does.

    python tools/bench/data/augment.py [--quick] [--json PATH] [--picture PNG]

Every sample is an image, labels (int64) and a valid mask; batches of 8, all made from another key each
time, so that the figure is the mean over what is drawn. `limit` copies the middle of the same crops and
does nothing else. `monai` is a chain of MONAI's transforms that comes close, on images and labels
without a mask: flips, quarter turns, an elastic and affine warp for half of the samples, contrast,
blur and noise for a third; defects, Poisson noise and shifts it has none. All of them run in turns in
this process, and what counts is processor time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data import Key, augment
from em_data.augment import AugmentConfig
from em_data.augment.clahe import clahe
from em_data.augment.defects import DefectConfig
from em_data.augment.presets import preset
from em_data.augment.warp import WarpConfig
from em_data.geometry import Float3, Int3
from em_data.synthetic import SyntheticConfig, render
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import sheet
from record import print_table, write

BATCH = 8
CASES: dict[str, tuple[str, Int3, Float3]] = {
    "256 × 256": ("ss-tem", (1, 256, 256), (40.0, 4.0, 4.0)),
    "5 × 256 × 256": ("ss-tem", (5, 256, 256), (40.0, 4.0, 4.0)),
    "64 × 64 × 64": ("fib-sem", (64, 64, 64), (8.0, 8.0, 8.0)),
}
PANEL_PX = 124
GREYS = 32  # in the picture, which noise would make too large to load otherwise

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw examples here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = 3 if options.quick else 15
    rows = [row for case in CASES for row in measure(case, turns)]
    show(rows)
    if options.json:
        conditions = {
            "threads": 1,
            "batch": BATCH,
            "turns": turns,
            "sample": "float32 image, one int64 label channel, bool mask",
            "source_vx": {
                case: augment.source_vx(size, preset(name), voxel)
                for case, (name, size, voxel) in CASES.items()
            },
            "versions": {m.__name__: m.__version__ for m in (np, torch)},
        }
        write(options.json, conditions, rows)
    if options.picture:
        draw(options.picture)


def measure(case: str, turns: int) -> list[Row]:
    """Rows of one shape: the preset, and its parts alone."""
    name, size, voxel = CASES[case]
    config = preset(name)
    still = WarpConfig(symmetries="none", share=0)
    grey = {"photometry": 0.0, "share": 0.0}
    parts = {
        name: config,
        "symmetries": AugmentConfig(warp=replace(config.warp, share=0, shifted=0), **grey),
        "warp of every sample": AugmentConfig(warp=replace(config.warp, share=1), **grey),
        "defects": AugmentConfig(warp=still, defects=config.defects, **grey),
        "contrast, blur, noise": replace(config, warp=still, defects=DefectConfig()),
        "CLAHE of every sample": AugmentConfig(
            warp=still, photometry=0, share=1, blur_vx=0, gaussian=0, electrons=0, clahe_clip=3
        ),
    }
    rows = []
    for part, own in parts.items():
        source = augment.source_vx(size, own, voxel)
        images = torch.rand(BATCH, *source)
        labels = (images * 50).long()[:, None]
        valid = torch.ones_like(labels, dtype=torch.bool)
        numbers = itertools.count(0, BATCH)
        box = tuple(slice((s - n) // 2, (s + n) // 2) for s, n in zip(source, size, strict=True))
        inner = (..., *box)

        def ours(own=own, images=images, labels=labels, valid=valid, numbers=numbers):
            first = next(numbers)
            keys = [Key(0, first + i) for i in range(BATCH)]
            return augment.apply(
                images, labels, valid, keys, own, seed=0, size_vx=size, voxel_size_nm=voxel
            )

        def copy(inner=inner, images=images, labels=labels, valid=valid):
            return [one[inner].clone() for one in (images, labels, valid)]

        readers: dict[str, Callable[[], object]] = {"ours": ours, "limit": copy}
        if part == name and (peer := monai(size, images, labels, config)):
            readers["monai"] = peer
        row: Row = {"case": f"augment {case} {part} 1 thread", "unit": "ms per sample"}
        row |= time_in_turns(readers, turns)
        rows.append(row)
    return rows


def time_in_turns(readers: dict[str, Callable[[], object]], turns: int) -> Row:
    """Mean processor milliseconds per sample of each, and the quartiles of its turns."""
    taken: dict[str, list[float]] = {reader: [] for reader in readers}
    for run in readers.values():
        run()
    for _ in range(turns):
        for reader, run in readers.items():
            start = time.process_time()
            run()
            taken[reader].append((time.process_time() - start) * 1e3 / BATCH)
    row: Row = {}
    for reader, values in taken.items():
        row[reader] = statistics.fmean(values)
        low, _, high = statistics.quantiles(values, n=4)
        row[f"{reader}_spread"] = [low, high]
    return row


def monai(
    size: Int3, images: torch.Tensor, labels: torch.Tensor, config: AugmentConfig
) -> Callable[[], object] | None:
    """The chain of MONAI's transforms, or nothing where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import monai.transforms as mt
    except ImportError:
        print("monai is not installed, its figures are left out: pip install monai")
        return None
    names, flat = ["image", "label"], size[0] == 1
    angle, scale = np.radians(config.warp.rotation_deg), config.warp.scale
    warp = {
        "keys": names,
        "prob": config.warp.share,
        "spatial_size": size[1:] if flat else size,
        "mode": ["bilinear", "nearest"],
        "padding_mode": "border",
    }
    if flat:
        elastic = mt.Rand2DElasticd(
            spacing=(80, 80),
            magnitude_range=(0, 2),
            rotate_range=[angle],
            scale_range=[scale] * 2,
            **warp,
        )
    else:
        turn = [angle] * 3 if config.warp.out_of_plane else [angle, 0, 0]
        elastic = mt.Rand3DElasticd(
            sigma_range=(5, 8),
            magnitude_range=(20, 80),
            rotate_range=turn,
            scale_range=[scale] * 3,
            **warp,
        )
    first = 0 if flat else 1
    chain = mt.Compose(
        [
            elastic,
            *(mt.RandFlipd(names, prob=0.5, spatial_axis=a) for a in range(2 if flat else 3)),
            mt.RandRotate90d(names, prob=0.75, spatial_axes=(first, first + 1)),
            mt.RandGaussianSmoothd(["image"], prob=config.share),
            mt.RandScaleIntensityd(["image"], factors=0.2, prob=1),
            mt.RandShiftIntensityd(["image"], offsets=0.1, prob=1),
            mt.RandAdjustContrastd(["image"], prob=1, gamma=(0.8, 1.25)),
            mt.RandGaussianNoised(["image"], prob=config.share, std=0.06),
        ]
    )
    pairs = [
        {"image": i if flat else i[None], "label": (lab[0] if flat else lab).float()}
        for i, lab in zip(images, labels, strict=True)
    ]
    return lambda: [chain(pair) for pair in pairs]


def show(rows: list[Row]) -> None:
    table = Table("case", "unit", "ours", "quartiles", "limit (×)", "monai (×)")
    for row in rows:
        low, high = row["ours_spread"]
        others = [
            f"{row[peer]:.2f} ({row[peer] / row['ours']:.2f})" if peer in row else ""
            for peer in ("limit", "monai")
        ]
        table.add_row(
            row["case"], row["unit"], f"{row['ours']:.2f}", f"{low:.2f} – {high:.2f}", *others
        )
    print_table(table, width=140)


def draw(path: Path) -> None:
    """Defects one by one, then samples of the presets: one row each, all of the same tissue."""
    size, thin, cube = (8, PANEL_PX, PANEL_PX), (40.0, 6.0, 6.0), (8.0, 8.0, 8.0)
    rows = [("one by one", alone(size, thin))]
    rows += [("fib-sem: the middle of eight samples", samples("fib-sem", (9, *size[1:]), cube))]
    for number in (233, 283, 331):  # with more defects than most
        title = f"ss-tem: the slices of sample {number}"
        rows.append((title, samples("ss-tem", size, thin, number)))
    sheet.save(path, rows, greys=GREYS)


def tissue(config: AugmentConfig, size: Int3, voxel: Float3) -> torch.Tensor:
    """The middle of a synthetic volume, as large as the augmentation needs: (1, Z, Y, X)."""
    source = augment.source_vx(size, config, voxel)
    shape = (source[0] + 20, source[1] + 160, source[2] + 160)
    truth = SyntheticConfig(shape_vx=shape, voxel_size_nm=voxel, seed=3, noise=0.05)
    return torch.from_numpy(render(truth, (10, 80, 80), source).raw).float()[None] / 255


def samples(
    name: str, size: Int3, voxel: Float3, number: int | None = None
) -> list[tuple[str, torch.Tensor]]:
    """All slices of one sample, or the middle ones of eight."""
    config = preset(name)
    numbers = range(8) if number is None else [number]
    keys = [Key(0, n) for n in numbers]
    source = tissue(config, size, voxel).expand(len(keys), -1, -1, -1)
    images, _, _ = augment.apply(
        source, None, None, keys, config, seed=0, size_vx=size, voxel_size_nm=voxel
    )
    panels = images[:, size[0] // 2] if number is None else images[0]
    return [("", panel) for panel in panels]


def alone(size: Int3, voxel: Float3) -> list[tuple[str, torch.Tensor]]:
    """The same slice after one change each, with numbers that make a good example of all."""
    still = WarpConfig(symmetries="none", share=0)
    nothing = AugmentConfig(warp=still, photometry=0, share=0)
    free = replace(preset("ss-tem").warp, share=1, symmetries="none", shifted=0)
    changes = {
        "as it is": nothing,
        "warped": replace(nothing, warp=free),
        "missing": replace(nothing, defects=DefectConfig(missing=1)),
        "blurred": replace(nothing, defects=DefectConfig(blurred=1)),
        "faded": replace(nothing, defects=DefectConfig(faded=1)),
        "folded": replace(nothing, defects=DefectConfig(folded=1)),
        "stitched": replace(nothing, defects=DefectConfig(stitched=1)),
    }
    largest = augment.source_vx(size, changes["warped"], voxel)
    source = tissue(changes["warped"], size, voxel)
    panels = []
    for name, config in changes.items():
        images, _, _ = augment.apply(
            source, None, None, [Key(0, 229)], config, seed=0, size_vx=size, voxel_size_nm=voxel
        )
        panels.append((name, images[0, 0]))
    middle = tuple(slice((s - n) // 2, (s + n) // 2) for s, n in zip(largest, size, strict=True))
    panels.append(("CLAHE", clahe(source, tile_vx=64)[0][middle][0]))
    return panels


if __name__ == "__main__":
    main()

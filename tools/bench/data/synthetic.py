"""The synthetic volume in figures: can grey alone tell its classes apart, and how fast is it?

    python tools/bench/data/synthetic.py [--quick] [--json PATH] [--picture PNG]
    python tools/bench/data/synthetic.py --materials PNG    # nothing but particles and lattices

How separability is measured: k-means (K = 50) on grey, as stored and smoothed within slices by a
Gaussian of 2 voxels, is fitted on one volume. Its codes are compared with the true classes of
another by normalised mutual information (NMI, arithmetic mean), leaving out 40 voxels along the
borders of every slice. The same is done on `synthetic_ref.zarr`, for which .107 is published, where
it is found: in the folder that EM_REAL_DATA names, or in ../shared/data beside the repository.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from em_data import Key, open_volume
from em_data.augment import degradation, degrade
from em_data.synthetic import (
    CLASSES,
    LatticeConfig,
    ParticlesConfig,
    SyntheticConfig,
    render,
    render_lattice,
    render_particles,
)
from em_train.judge.baselines import grey_centres, grey_codes
from em_train.judge.codes import nmi
from em_train.look import pictures
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import sheet
from record import print_table, write

K = 50
LIMIT = 0.15
PUBLISHED = 0.107  # for k-means on smoothed grey of the reference volume
SMOOTHING_VX = {"smoothed grey": 2.0, "grey": 0.0}
BORDER_VX = 40
MATERIALS, MATERIAL_PX = 7, 150

Row = dict[str, str | float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds instead of eight")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw a volume here")
    parser.add_argument("--materials", type=Path, metavar="PNG", help="only draw materials here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.materials:
        draw_materials(options.materials)
        return

    rows = measure(2 if options.quick else 8)
    add_reference(rows)
    show(rows)
    if options.json:
        config = SyntheticConfig()
        conditions = {
            "volume": f"SyntheticConfig(): {config.shape_vx} voxels of {config.voxel_size_nm} nm",
            "seeds": 2 if options.quick else 8,
            "codes": K,
            "border_vx": BORDER_VX,
            "speed": "processor time of one render, one thread",
            "numpy": np.__version__,
        }
        write(options.json, conditions, rows)
    if options.picture:
        draw(SyntheticConfig(), options.picture)


def measure(seeds: int) -> list[Row]:
    """One row per figure, over seeds; the codes are fitted on the volume of the seed before."""
    figures: dict[tuple[str, str], list[float]] = {}
    before = render(SyntheticConfig(seed=seeds)).raw
    for seed in range(seeds):
        start = time.process_time()
        block = render(SyntheticConfig(seed=seed))
        seconds = time.process_time() - start
        for what, sigma in SMOOTHING_VX.items():
            value = separability(before, block.raw, block.classes, sigma)
            figures.setdefault((f"k-means on {what}", "NMI"), []).append(value)
        counts = np.bincount(block.classes.ravel(), minlength=len(CLASSES))
        for name, count in zip(CLASSES, counts, strict=True):
            share = 100 * float(count) / block.raw.size
            figures.setdefault((name, "% of voxels"), []).append(share)
        figures.setdefault(("speed", "Mvoxel/s"), []).append(block.raw.size / seconds / 1e6)
        before = block.raw
    rows: list[Row] = []
    for (case, unit), values in figures.items():
        rows.append({"case": case, "unit": unit, "ours": sum(values) / len(values)})
        rows[-1] |= {"least": min(values), "most": max(values)}
        if unit == "NMI":
            rows[-1]["limit"] = LIMIT
    return rows


def add_reference(rows: list[Row]) -> None:
    """Put the reference volume's figures beside ours, or say that it is not there."""
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    path = Path(os.environ.get("EM_REAL_DATA", beside)) / "synthetic_ref.zarr"
    if not path.exists():
        print(f"no reference volume at {path}, its figures are left out; set EM_REAL_DATA\n")
        return
    fit, raw, classes = (
        open_volume(path / name)[:, :, :] for name in ("train_raw", "test_raw", "test_classes")
    )
    rows[0]["published"] = PUBLISHED
    for row, sigma in zip(rows, SMOOTHING_VX.values(), strict=False):
        row["ref"] = separability(fit, raw, classes, sigma)


def separability(
    fit_raw: np.ndarray,  # (Z, Y, X)
    raw: np.ndarray,  # (Z, Y, X), another volume
    classes: np.ndarray,  # (Z, Y, X), of `raw`
    sigma_vx: float,
) -> float:
    """NMI between the codes of k-means on smoothed grey and the true classes."""
    inner = (slice(None), slice(BORDER_VX, -BORDER_VX), slice(BORDER_VX, -BORDER_VX))
    centres = grey_centres(torch.from_numpy(fit_raw), K, sigma=sigma_vx)
    codes = grey_codes(torch.from_numpy(raw), centres, sigma=sigma_vx)[inner]
    return nmi(codes, torch.from_numpy(classes[inner].astype(np.int64)))


def show(rows: list[Row]) -> None:
    others = ("ref", "published", "limit")
    table = Table("case", "unit", *("mean", "least", "most"), *others)
    for row in rows:
        cells = [
            f"{row[key]:.3f}" if key in row else "" for key in ("ours", "least", "most", *others)
        ]
        table.add_row(str(row["case"]), str(row["unit"]), *cells)
    print_table(table)


def draw(config: SyntheticConfig, path: Path) -> None:
    """Slices in xy, the truth, and xz stretched to the same scale."""
    block = render(config)
    z, y = config.shape_vx[0] // 2, config.shape_vx[1] // 2
    rows = round(config.voxel_size_nm[0] / config.voxel_size_nm[2] * config.shape_vx[0])
    stretched = np.arange(rows) * config.shape_vx[0] // rows
    panels = [
        ("xy", block.raw[z]),
        ("classes", pictures.class_map(block.classes[z], len(CLASSES))),
        ("cells", pictures.class_map(block.instances[z].astype(np.int64) % 50, 50)),
        ("xz", block.raw[stretched, y]),
    ]
    pictures.save_row(panels, path)


def draw_materials(path: Path) -> None:
    """Particles and lattices, their truth below, and what a worse scan shows of them."""
    size = (MATERIAL_PX, MATERIAL_PX)
    kinds = {
        "particles on support films": (render_particles, ParticlesConfig(size_px=size, seed=381)),
        "atomic lattices": (render_lattice, LatticeConfig(size_px=size, seed=189)),
    }
    rows: list[tuple[str, list[sheet.Panel]]] = []
    for (title, (render_one, config)), damage in zip(
        kinds.items(), ("sem-particles", "stem-lattice"), strict=True
    ):
        found = [render_one(config, index) for index in range(MATERIALS)]
        clean = [torch.from_numpy(one.image) for one in found]
        truth = [shaded(one.columns if "atomic" in title else one.instances) for one in found]
        keys = [Key(0, index) for index in range(MATERIALS)]
        worse = degrade(torch.stack(clean)[:, None], keys, degradation(damage), seed=0)[:, 0]
        rows.append((title, [("", one) for one in clean]))
        rows.append(("their numbers", [("", one) for one in truth]))
        rows.append((f"damaged by {damage}", [("", one) for one in worse]))
    sheet.save(path, rows, greys=24)


def shaded(numbers: np.ndarray) -> torch.Tensor:
    """Different greys for neighbouring numbers, black for 0."""
    grey = 0.35 + 0.65 * (numbers * 0.618 % 1)
    return torch.from_numpy(np.where(numbers > 0, grey, 0))


if __name__ == "__main__":
    main()

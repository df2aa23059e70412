"""Milliseconds that degradations and blind spots take per sample, on one thread, and a picture of them.

    python tools/bench/data/degrade.py [--quick] [--json PATH] [--picture PNG]

Batches of 8 float32 images of 256 × 256 voxels, all made from another key each time, so that the figure
is the mean over what is drawn. `change_grey` is the augmentation of grey values with the preset
`fib-sem`, measured in turns with all of them in this process; what counts is processor time.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from em_data import Key
from em_data.augment import (
    DEGRADATIONS,
    KINDS,
    BlindSpotConfig,
    DegradeConfig,
    blind_spots,
    change_grey,
    degradation,
    degrade,
    only,
)
from em_data.augment.presets import preset
from em_data.synthetic import (
    LatticeConfig,
    ParticlesConfig,
    SyntheticConfig,
    render,
    render_lattice,
    render_particles,
)
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
import sheet
from record import print_table, write

BATCH, SIDE = 8, 256
PANEL_PX = 132
ZOOM = 3
GREYS = 16  # in the picture, which noise would make too large to load otherwise

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw examples here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    turns = 5 if options.quick else 40
    rows = measure(turns)
    show(rows)
    if options.json:
        conditions = {
            "threads": 1,
            "batch": BATCH,
            "turns": turns,
            "sample": f"float32 (1, {SIDE}, {SIDE})",
            "versions": {m.__name__: m.__version__ for m in (np, torch)},
        }
        write(options.json, conditions, rows)
    if options.picture:
        draw(options.picture)


def measure(turns: int) -> list[Row]:
    """The presets, each kind of `fib-sem` in every sample, and the blind spots, in turns."""
    images = torch.rand(BATCH, 1, SIDE, SIDE)
    cases: dict[str, Callable[[list[Key]], object]] = {
        "change_grey fib-sem": lambda keys: change_grey(
            images.clone(), keys, preset("fib-sem"), seed=0
        )
    }
    configs = dict(DEGRADATIONS)
    for kind in KINDS:
        configs[f"{kind} of every sample"] = only(degradation("fib-sem"), [kind], probability=1)
    for name, config in configs.items():
        cases[name] = lambda keys, config=config: degrade(images, keys, config, seed=0)
    for name, blind in blind_configs().items():
        cases[name] = lambda keys, blind=blind: blind_spots(images, keys, blind, seed=0)
    taken: dict[str, list[float]] = {case: [] for case in cases}
    numbers = itertools.count(0, BATCH)
    for _ in range(turns):
        first = next(numbers)
        keys = [Key(0, first + i) for i in range(BATCH)]
        for case, run in cases.items():
            start = time.process_time()
            run(keys)
            taken[case].append((time.process_time() - start) * 1e3 / BATCH)
    rows = []
    for case, values in taken.items():
        low, _, high = statistics.quantiles(values[1:], n=4)
        row: Row = {"case": f"degrade {case} 1 thread", "unit": "ms per sample"}
        rows.append(row | {"ours": statistics.fmean(values[1:]), "ours_spread": [low, high]})
    return rows


def blind_configs() -> dict[str, BlindSpotConfig]:
    return {
        "blind spots, neighbour": BlindSpotConfig(replacement="neighbour"),
        "blind spots, median": BlindSpotConfig(),
        "blind spots, median, row of 9": BlindSpotConfig(row_vx=4),
    }


def show(rows: list[Row]) -> None:
    table = Table("case", "unit", "ours", "quartiles")
    for row in rows:
        low, high = row["ours_spread"]
        table.add_row(row["case"], row["unit"], f"{row['ours']:.2f}", f"{low:.2f} – {high:.2f}")
    print_table(table, width=140)


def draw(path: Path) -> None:
    """Each kind alone, strong enough to be seen, then samples of the presets."""
    tissue = tissue_of(6.0)
    strong = replace(
        strongest(DegradeConfig()),
        charging_strength=(0.3, 0.3),
        background_strength=(0.12, 0.12),
        background_vx=(100, 200),
    )
    two, four = (replace(strong, sampling_factors=(f,)) for f in (2, 4))
    kinds = {
        "as it is": only(strong, []),
        "defocus": only(strong, ["defocus"], probability=1),
        "sampling by 2": only(two, ["sampling"], probability=1),
        "sampling by 4": only(four, ["sampling"], probability=1),
        **{kind: only(strong, [kind], probability=1) for kind in KINDS[2:]},
    }
    panels = [(name, one(tissue, config, 1)) for name, config in kinds.items()]
    noisy = only(strong, ["dose", "scan"], probability=1)
    scans = [one(tissue, noisy, 1, copy=copy) for copy in (0, 1)]
    panels += [(f"dose and scan, {copy}", scan) for copy, scan in enumerate(scans)]
    near, blind = zoomed(scans[0]), BlindSpotConfig(row_vx=2)
    spots, _ = blind_spots(scans[0][None, None], [Key(0, 0)], blind, seed=0)
    panels += [("nearer", near), ("blind spots", zoomed(spots[0, 0]))]
    rows: list[tuple[str, Sequence[sheet.Panel]]] = [
        ("one by one" if start == 0 else "", panels[start : start + 8]) for start in (0, 8)
    ]
    for number, name in enumerate(DEGRADATIONS):
        numbers = range(8 * number, 8 * number + 8)
        samples = [("", one(shown_by(name, tissue, n), degradation(name), n)) for n in numbers]
        rows.append((f"{name}: eight samples", samples))
    sheet.save(path, rows, greys=GREYS)


def zoomed(image: torch.Tensor) -> torch.Tensor:
    side = PANEL_PX // ZOOM
    return image[:side, :side].repeat_interleave(ZOOM, 0).repeat_interleave(ZOOM, 1)


def strongest(config: DegradeConfig) -> DegradeConfig:
    """The same with every range at its strong end."""
    strong = {
        name: (value[1], value[1])
        for name, value in vars(config).items()
        if isinstance(value, tuple) and name != "sampling_factors"
    }
    return replace(config, **(strong | {"dose_electrons": (config.dose_electrons[0],) * 2}))


def one(tissue: torch.Tensor, config: DegradeConfig, number: int, *, copy: int = 0) -> torch.Tensor:
    return degrade(tissue, [Key(0, number)], config, seed=0, copy=copy)[0, 0]


def shown_by(name: str, tissue: torch.Tensor, number: int) -> torch.Tensor:
    """What a modality looks at: (1, 1, Y, X)."""
    side = (PANEL_PX, PANEL_PX)
    if name == "sem-particles":
        found = render_particles(ParticlesConfig(size_px=side, look="sem"), number).image
    elif name == "stem-lattice":
        found = render_lattice(LatticeConfig(size_px=side), number).image
    else:
        return tissue
    return torch.from_numpy(found)[None, None]


def tissue_of(voxel_nm: float) -> torch.Tensor:
    """A slice of a synthetic volume without noise: (1, 1, Y, X)."""
    truth = SyntheticConfig(
        shape_vx=(20, PANEL_PX + 160, PANEL_PX + 160),
        voxel_size_nm=(40.0, voxel_nm, voxel_nm),
        seed=3,
        noise=0,
    )
    raw = render(truth, (10, 80, 80), (1, PANEL_PX, PANEL_PX)).raw
    return torch.from_numpy(raw).float()[None] / 255


if __name__ == "__main__":
    main()

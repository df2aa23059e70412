"""Restoration beside tuned classical filters, with and without an adversary, and from noise alone.

    python tools/bench/train/restore.py --out FOLDER [--json PATH] [--steps 400] [--seeds 3]
    python tools/bench/train/restore.py --out FOLDER --quick

vnc_sstem at 9.2 nm (EM_REAL_DATA, or ../shared/data beside the repository; 2 × 2 means). Networks learn on
z 0–9, weights and the settings of filters are chosen on z 10–11, z 12–15 are scored once; and so is the
other stack, which nobody learned from. Every damage is of one strength, so that filters can be tuned to it.

Runs that are done are not done again: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from em_data import Box, binned, grey_range, new_store, open_volume
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.judge.truth import Protocol
from em_train.recipes import restore as recipe
from em_train.restore.evaluate import evaluate
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

CHOOSE, SCORE = (10, 12), (12, 16)
WHITE, ELECTRONS = 0.1, 40.0
DAMAGES: dict[str, dict[str, Any]] = {
    "white": {"detector": 1.0, "detector_strength": [WHITE] * 2},
    "dose": {"dose": 1.0, "dose_electrons": [ELECTRONS] * 2},
    "rows": {
        **{"dose": 1.0, "dose_electrons": [ELECTRONS] * 2},
        **{"scan": 1.0, "scan_offset": [0.02] * 2, "scan_strength": [0.07] * 2},
        "scan_vx": [8.0, 8.0],
    },
    "background": {
        "background": 1.0,
        "background_strength": [0.06] * 2,
        "background_vx": [150.0, 400.0],
    },
}


class Arm(NamedTuple):
    """A way to learn, for one damage."""

    damage: str
    name: str
    settings: dict[str, dict[str, Any]]


def arms() -> Iterator[Arm]:
    """What is compared."""
    for damage in DAMAGES:
        yield Arm(damage, "L1", {})
    # Weights of the adversary beside a Charbonnier error of 1.
    for weight in (0.01, 0.1):
        yield Arm("rows", f"L1 + adversary × {weight}", {"loss": {"adversary": weight}})
    for how in ("neighbour", "median"):
        blind = {"learn_from": "noise", "blind_spot": {"replacement": how}}
        yield Arm("white", f"noise alone, {how}", {"data": blind})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--steps", type=int, default=400, help="of a training, 8 crops of 96² each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", metavar="DAMAGE", choices=DAMAGES, help="one kind of damage")
    parser.add_argument("--quick", action="store_true", help="20 steps, one seed, one damage")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.steps, options.seeds, options.only = 20, 1, "rows"
    options.out.mkdir(parents=True, exist_ok=True)
    volumes = make_volumes(options.out / "data")
    rows: list[dict[str, Any]] = []
    filters: dict[
        tuple[str, str], list[dict[str, Any]]
    ] = {}  # of each damage and place, tuned once
    for arm in arms():
        if options.only in (None, arm.damage):
            runs = [run_arm(arm, seed, options, volumes) for seed in range(options.seeds)]
            for where, judged in runs[0].items():
                own = [row for row in judged["rows"] if row["classical"]]
                filters.setdefault((arm.damage, where), own)
            rows += summarise(arm, runs, filters)
    show(rows)
    if options.json:
        write(options.json, {"steps": options.steps, "seeds": options.seeds}, rows)


def make_volumes(folder: Path) -> dict[str, Path]:
    """Both stacks at 9.2 nm, a noisy scan of the first, and what may be seen of it in training."""
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    stacks = Path(os.environ.get("EM_REAL_DATA", beside)).absolute() / "vnc_sstem.zarr"
    names = ("first", "first seen", "second", "noisy", "noisy seen")
    places = {name: folder / f"{name.replace(' ', '-')}.zarr" for name in names}
    for name, place in places.items():
        if place.exists():
            continue
        stack = "raw_unlabelled" if name == "second" else "raw"
        volume = binned(open_volume(stacks / stack), (1, 2, 2))
        voxels = volume[: SCORE[0] if name.endswith("seen") else SCORE[1], :, :]
        if name.startswith("noisy"):  # as strong as the damage, in grey values
            grey = grey_range(volume)
            deviation = WHITE * (grey.high - grey.low)
            noise = np.random.default_rng(0).normal(0, deviation, voxels.shape)
            voxels = np.rint(voxels + noise).clip(0, 255).astype(np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        with new_store(place) as store:
            image = store.add_image(voxels.shape, voxels.dtype, volume.voxel_size_nm)
            image.write(Box((0, 0, 0), voxels.shape), voxels)
    return places


def run_arm(arm: Arm, seed: int, options: Any, volumes: dict[str, Path]) -> dict[str, Any]:
    """Train and judge, unless it is done."""
    path = options.out / f"{arm.damage}-{arm.name}-{seed}".replace(" ", "_")
    told = path / "judged.json"
    if told.exists():
        found: dict[str, Any] = json.loads(told.read_text())
        return found
    alone = arm.settings.get("data", {}).get("learn_from") == "noise"
    settings = {
        "data": {
            **{"task": "background" if arm.damage == "background" else "denoise"},
            **{"volumes": [str(volumes["noisy seen" if alone else "first seen"])], "patch_vx": 96},
            # A crop is one slice: no gap is needed between those for training and for choosing.
            **{"damage": DAMAGES[arm.damage], "split": {"z": CHOOSE, "gap_vx": [0, 0, 0]}},
            **{"samples_per_epoch": 800},
        },
        "run": {
            **{"steps": options.steps, "seed": seed, "device": "cpu", "precision": "fp32"},
            **{"picture_every": 10**6, "checkpoint_every": 10**6},
        },
    }
    config = resolve(recipe.Config, [Layer("bench", settings), Layer("arm", arm.settings)])
    if not (path / "restoration.json").exists():
        assert recipe.run(config, new_run(path, config, "restore"))
    protocol = Protocol(fit_z=CHOOSE, score_z=SCORE)
    found = {}
    for name, volume in (("held-out slices", "first"), ("other stack", "second")):
        if alone and volume == "second":
            continue
        judged = evaluate(
            path,
            (str(volumes["noisy" if alone else volume]), ()),
            None,
            protocol,
            grey="run",
            target=str(volumes["first"]) if alone else None,
            baselines=seed == 0 and arm.name == "L1",
        )
        found[name] = judged.as_json()
    told.write_text(json.dumps(found))
    return found


def summarise(
    arm: Arm,
    runs: list[dict[str, Any]],
    filters: dict[tuple[str, str], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """A row for each place that was scored, beside the best of the tuned filters there."""
    rows = []
    for where, first in runs[0].items():
        own = [next(r for r in run[where]["rows"] if r["method"] == "run") for run in runs]
        best = max(filters[arm.damage, where], key=lambda row: row["psnr"])
        given = next(r for r in first["rows"] if r["method"] == "input")
        psnr = [row["psnr"] for row in own]
        rows.append(
            {
                "case": f"{arm.damage}, {where}, {arm.name}",
                "unit": "dB",
                "ours": statistics.mean(psnr),
                "lowest": min(psnr),
                "highest": max(psnr),
                "input": given["psnr"],
                "filter": best["psnr"],
                "filter_name": best["method"],
                "ssim": statistics.mean(row["ssim"] for row in own),
                "filter_ssim": best["ssim"],
                "gap": None if own[0]["gap"] is None else max(row["gap"] for row in own),
                "filter_gap": best["gap"],
                "invented": None
                if own[0]["invented"] is None
                else max(row["invented"] for row in own),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("case", "input dB", "best filter", "ours dB", "over it", "gap", "SSIM")
    for row in rows:
        spread = f"{row['ours']:.2f} ({row['lowest']:.2f}–{row['highest']:.2f})"
        gap = "" if row["gap"] is None else f"{row['gap']:.3f}"
        table.add_row(
            row["case"],
            f"{row['input']:.2f}",
            f"{row['filter']:.2f} {row['filter_name']}",
            spread,
            f"{row['ours'] - row['filter']:+.2f}",
            gap,
            f"{row['ssim']:.3f} / {row['filter_ssim']:.3f}",
        )
    print_table(table)


if __name__ == "__main__":
    main()

"""What few labelled slices are worth, from scratch and with the encoder of a dense-ssl run as a guide.

    python tools/bench/train/label_efficiency.py --out FOLDER [--init RUN] [--json PATH] [--png PATH]
        [--slices 1,2,4,8] [--only guided] [--seeds 3] [--steps 150]

Membranes and mitochondria of vnc_sstem (EM_REAL_DATA, or ../shared/data beside the repository), with
the commands that a user has: `emtrain segment` on so many of z 0–8, weights and thresholds chosen on
z 10–11, then `emtrain evaluate` on z 12–15. The labels of z 12 and later are not there while training.
Without --init, FOLDER/ssl is trained first, without labels, on z 0–11 of both stacks.

Runs that are done are not done again: a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, new_store, open_volume
from em_train.cli import app
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

NAMES = {"membrane": "membranes", "mitochondria": "mitochondria"}
SEEN_Z, CHOOSE, SCORE = 12, "10:12", "12:16"
INITS = ("scratch", "guided")
COMMON = {"precision": "bf16", "picture_every": 10**6, "checkpoint_every": 10**6}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--init", type=Path, help="a dense-ssl run that saw no slice from z 12 on")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    parser.add_argument("--png", type=Path, metavar="PATH", help="also draw the curves")
    parser.add_argument("--slices", default="1,2,4,8")
    parser.add_argument("--only", choices=INITS, help="train from scratch, or guided, alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=150, help="of a training, 8 patches of 128² each"
    )
    parser.add_argument("--ssl-steps", type=int, default=2000, help="of dense-ssl, without --init")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    stacks = Path(os.environ.get("EM_REAL_DATA", beside)).absolute() / "vnc_sstem.zarr"
    seen = cut_labels(stacks, options.out)
    init = options.init or pretrain(stacks, options.out / "ssl", options.ssl_steps)
    counts = [int(count) for count in options.slices.split(",")]
    runs = []
    for seed in range(options.seeds):
        for count in counts:
            for kind in [options.only] if options.only else INITS:
                path = options.out / f"{kind}-{count}-seed-{seed}"
                scores = path / "score.json"
                if not scores.exists():
                    guide = init if kind == "guided" else None
                    train(stacks, seen, path, count, seed, options.steps, guide)
                    score(stacks, path, scores)
                for found in json.loads(scores.read_text())["classes"]:
                    kept = {name: found[name] for name in ("class", "dice", "iou", "boundary_f1")}
                    runs.append({"init": kind, "slices": count, "seed": seed} | kept)
                    print(
                        {k: round(v, 3) if isinstance(v, float) else v for k, v in runs[-1].items()}
                    )
    rows = summarise(runs)
    show(rows)
    if options.png:
        draw(rows, options.png)
    if options.json:
        write(options.json, conditions(init, options), rows, runs=runs)


def cut_labels(stacks: Path, folder: Path) -> dict[str, Path]:
    """Labels of the slices that may be seen, in stores of their own."""
    seen = {name: folder / f"{name}.zarr" for name in NAMES}
    for name, path in seen.items():
        if not path.exists():
            volume = open_volume(stacks / NAMES[name])
            voxels = np.asarray(volume[:SEEN_Z, :, :])
            with new_store(path) as store:
                image = store.add_image(voxels.shape, voxels.dtype, volume.voxel_size_nm)
                image.write(Box((0, 0, 0), voxels.shape), voxels)
    return seen


def pretrain(stacks: Path, path: Path, steps: int) -> Path:
    """A dense-ssl run without labels."""
    if not (path / "weights" / "encoder" / "config.json").exists():
        settings = [f"data.z=[0,{SEEN_Z}]", f"run.steps={steps}", *keys("run", COMMON)]
        volumes = (stacks / "raw", stacks / "raw_unlabelled")
        emtrain(
            "dense-ssl",
            *(f"--data={volume}" for volume in volumes),
            *(f"--set={setting}" for setting in settings),
            *(["--resume"] if path.exists() else []),
            f"--out={path}",
        )
    return path


def train(
    stacks: Path,
    seen: dict[str, Path],
    path: Path,
    count: int,
    seed: int,
    steps: int,
    init: Path | None,
) -> None:
    """A segmentation of so many slices."""
    data = {"patch_vx": 128, "balance": 0.01, "exclusive": "true", "samples_per_epoch": 8 * 25}
    optim = {"steps": steps, "warmup_steps": 20}
    settings = keys("data", data) + keys("optim", optim) + keys("run", COMMON | {"seed": seed})
    emtrain(
        "segment",
        f"--data={stacks / 'raw'}",
        *(f"--labels={name}={labels}" for name, labels in seen.items()),
        f"--val-z={CHOOSE}",
        f"--slices={count}",
        *(f"--set={setting}" for setting in settings),
        *([f"--init={init}"] if init else []),
        *(["--resume"] if path.exists() else []),
        f"--out={path}",
    )


def score(stacks: Path, path: Path, scores: Path) -> None:
    """Its scores on slices that nothing was chosen on."""
    emtrain(
        "evaluate",
        str(path),
        f"--data={stacks / 'raw'}",
        *(f"--labels={name}={stacks / source}" for name, source in NAMES.items()),
        f"--score-z={SCORE}",
        f"--json={scores}",
    )


def emtrain(*arguments: str) -> None:
    """A command of emtrain, in this process."""
    print("emtrain", *arguments, flush=True)
    app(list(arguments), standalone_mode=False)


def keys(section: str, values: dict[str, Any]) -> list[str]:
    return [f"{section}.{key}={value}" for key, value in values.items()]


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat row for every class, number of slices and init."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["class"], run["slices"], run["init"]), []).append(run)
    rows = []
    for (label, count, kind), group in groups.items():
        row: dict[str, Any] = {"case": f"{label}, {count} slices, {kind}"}
        row |= {"class": label, "slices": count, "init": kind}
        for name in ("dice", "iou", "boundary_f1"):
            values = [run[name] or 0.0 for run in group]
            row |= {name: statistics.mean(values), f"{name}_spread": [min(values), max(values)]}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["class"], row["slices"], row["init"] != INITS[0]))


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("class", "slices", "init", "Dice", "IoU", "boundary F1")
    for row in rows:
        cells = [
            f"{row[name]:.3f} ({row[f'{name}_spread'][0]:.3f}–{row[f'{name}_spread'][1]:.3f})"
            for name in ("dice", "iou", "boundary_f1")
        ]
        table.add_row(row["class"], str(row["slices"]), row["init"], *cells)
    print_table(table, width=120)


def conditions(init: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    settings = json.loads((init / "config.json").read_text())
    return {
        "volume": "vnc_sstem, trained on some of z 0–8, chosen on z 10–11, scored on z 12–15",
        "steps": options.steps,
        "seeds": options.seeds,
        "dense-ssl": {
            "steps": settings["optim"]["steps"],
            "z": settings["data"]["z"],
            "volumes": [Path(volume).name for volume in settings["data"]["volumes"]],
            "pixel_nm": settings["data"]["pixel_nm"],
        },
    }


# The picture -------------------------------------------------------------------------------------

FINE = 3  # times larger while drawing
SIZE, MARGIN = (420, 324), (58, 18, 40, 70)  # of a panel; left, right, top, bottom
COLOURS = {"scratch": (120, 120, 120), "guided": (30, 110, 200)}
TITLES = {"scratch": "from scratch", "guided": "with --init of dense-ssl"}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean Dice over the number of slices, with the range of the seeds, a panel for every class."""
    labels, counts = list(NAMES), sorted({row["slices"] for row in rows})
    values = [value for row in rows for value in row["dice_spread"]]
    low, high = np.floor(min(values) * 10) / 10, min(1.0, np.ceil(max(values) * 10) / 10)
    picture = Image.new("RGB", (FINE * SIZE[0] * len(labels), FINE * SIZE[1]), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(FINE * 13)
    for number, label in enumerate(labels):
        left, right = number * SIZE[0] + MARGIN[0], (number + 1) * SIZE[0] - MARGIN[1]
        top, bottom = MARGIN[2], SIZE[1] - MARGIN[3]

        def x(count: int, left: int = left, right: int = right) -> float:
            place = (counts.index(count) + 0.5) / len(counts)
            return FINE * (left + place * (right - left))

        def y(dice: float, top: int = top, bottom: int = bottom) -> float:
            return FINE * (bottom - (dice - low) / (high - low) * (bottom - top))

        for tick in np.arange(low, high + 1e-9, 0.1):
            pen.line([(FINE * left, y(tick)), (FINE * right, y(tick))], (225, 225, 225), FINE)
            pen.text((FINE * (left - 8), y(tick)), f"{tick:.1f}", "black", font, anchor="rm")
        for count in counts:
            pen.text((x(count), FINE * (bottom + 6)), str(count), "black", font, anchor="mt")
        middle = FINE * (left + right) / 2
        pen.text((middle, FINE * (bottom + 26)), "labelled slices", "black", font, anchor="mt")
        pen.text((middle, FINE * 12), f"Dice, {label}", "black", font, anchor="mt")
        for place, kind in enumerate(INITS):
            own = [row for row in rows if row["class"] == label and row["init"] == kind]
            colour, aside = COLOURS[kind], FINE * 3 * (2 * place - 1)
            points = [(x(row["slices"]) + aside, y(row["dice"])) for row in own]
            pen.line(points, colour, 2 * FINE)
            for (at, mean), row in zip(points, own, strict=True):
                ends = [(at, y(value)) for value in row["dice_spread"]]
                pen.line(ends, colour, FINE)
                pen.ellipse((at - 9, mean - 9, at + 9, mean + 9), colour)
    line = FINE * (SIZE[1] - 14)  # the legend, below both panels
    for start, kind in zip((0.27, 0.52), INITS, strict=True):
        at = start * picture.width
        pen.line([(at, line), (at + FINE * 24, line)], COLOURS[kind], 2 * FINE)
        pen.text((at + FINE * 32, line), TITLES[kind], "black", font, anchor="lm")
    picture.resize([side // FINE for side in picture.size], Image.Resampling.LANCZOS).save(path)


if __name__ == "__main__":
    main()

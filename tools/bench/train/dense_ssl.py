"""What the classes of dense-ssl are worth: variants × volumes × seeds, trained, proven and scored.

    python tools/bench/train/dense_ssl.py default --seeds 3 --out runs/tables
    python tools/bench/train/dense_ssl.py ingredients --volumes vnc --steps 400 --out runs/tables
    python tools/bench/train/dense_ssl.py --list

Every row is what a person would type: `emtrain dense-ssl`, whose end is the proof, and `emtrain
evaluate`; with --audit-steps also `emtrain prove`. Volumes and protocols are those of the data's
README (EM_REAL_DATA, or ../shared/data beside the repository):

synthetic  learned from and fitted on the training volume, scored on the other one
vnc        learned from z 0–11, fitted on z 0–8, scored on z 12–15 (--choose: on z 10–11)
fib25      learned from sample1, borders of sample2 fitted on z < 170, scored on z ≥ 190
           (--choose: fitted on 70 ≤ z < 170, scored on z < 50)

Finished rows are kept in OUT and not made again, so a table that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_table, write

EMTRAIN = Path(sys.executable).with_name("emtrain")
REPOSITORY = Path(__file__).parents[3]
DATA = Path(os.environ.get("EM_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
NOWHERE = 10**6  # steps between what nobody looks at

Settings = tuple[str, ...]
PLAIN: Settings = ()
FINE = ("model.encoder.strides=[1,2,1,2,1,1]", "model.encoder.dilations=[1,2,1,1,1,2]")
PADDED = ("model.encoder.padding=zeros",)
SHALLOW = (
    "model.encoder.channels=[16,32,32,64,64]",
    "model.encoder.kernels=[5,3,3,3,3]",
    "model.encoder.strides=[2,1,1,2,1]",
    "model.encoder.dilations=[1,1,1,1,1]",
)
DEEP = (
    "model.encoder.channels=[16,32,32,64,64,64,64]",
    "model.encoder.kernels=[5,3,3,3,3,3,3]",
    "model.encoder.strides=[2,1,1,2,1,1,1]",
    "model.encoder.dilations=[1,1,1,1,1,2,2]",
)
TABLES: dict[str, dict[str, Settings]] = {
    "default": {"default": PLAIN},
    "classes": {
        f"K = {k}": (f"model.encoder.classes={k}", f"loss.classes_at_least={0.6 * k:g}")
        for k in (10, 20, 50, 100)
    },
    "ingredients": {
        "default": PLAIN,
        "zero padding": PADDED,
        "zero padding, target not turned": (*PADDED, "data.turn_target=false"),
        "target not turned": ("data.turn_target=false",),
        "linear head": ("model.encoder.head=linear", "model.recluster=false"),
        "not reclustered": ("model.recluster=false",),
        "reclustered without texture": ("model.recluster_texture=0",),
        "no context": ("loss.context_weight=0",),
        "no second view": ("loss.view_weight=0",),
        "no InfoNCE": ("loss.contrast_weight=0",),
        "no filter bank": ("loss.feature_weight=0",),
        "learned target instead of the bank": ("loss.feature_target=average",),
        "filter bank alone": (
            "loss.context_weight=0",
            "loss.view_weight=0",
            "loss.contrast_weight=0",
        ),
        "maximal H̄ instead of a floor": ("loss.spread=information", "loss.spread_weight=1"),
        "target from EMA": ("loss.target=ema",),
        "no photometry": ("data.photometry=0",),
        "photometry .7": ("data.photometry=0.7",),
        "stride-1 stem": FINE,
        "one layer fewer": SHALLOW,
        "one layer more": DEEP,
        "no means over windows": ("model.encoder.pools=[]",),
        "means over 7 codes": ("model.encoder.pools=[7]",),
        "code pitch 2 px": ("model.encoder.code_pitch_vx=2",),
        "context one slice away": ("data.context_nm=1",),
        "two slices before and after": ("data.stack.offsets_z=[-2,-1,0,1,2]",),
    },
    "backbones": {
        name: (
            "model.kind=timm",
            f"model.timm.backbone={name}",
            "model.timm.max_stride=4",
            f"data.stack.size_vx={size}",  # in which its codes lie evenly
        )
        for name, size in (("convnext_atto", 136), ("resnet18", 135))
    },
    "attempts": {f"exp{n}": (f"preset {n}",) for n in range(1, 6)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", nargs="?", choices=sorted(TABLES), default="default")
    parser.add_argument("--list", action="store_true", help="say what the tables hold")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these of the table")
    parser.add_argument(
        "--volumes", nargs="+", choices=sorted(PROTOCOLS), default=sorted(PROTOCOLS)
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="instead of the recipe's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all")
    parser.add_argument("--choose", action="store_true", help="score on slices for choosing")
    parser.add_argument("--audit-steps", type=int, default=0, help="of the shuffle audit")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), metavar="FOLDER")
    parser.add_argument("--markdown", action="store_true", help="print the table for a document")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    if options.list:
        for name, variants in TABLES.items():
            print(f"{name}: {', '.join(variants)}")
        return
    rows = [row for volume in options.volumes for row in measure(volume, options)]
    show(rows, box.MARKDOWN if options.markdown else box.HEAVY_HEAD)
    if options.json:
        write(options.json, conditions(options), rows)


def vnc(choose: bool) -> tuple[list[str], list[str]]:
    """Address and settings of training, and the options of `emtrain evaluate`."""
    raw, labels = DATA / "vnc_sstem.zarr/raw", DATA / "vnc_sstem.zarr"
    score = "10:12" if choose else "12:16"
    named = [f"--labels={labels / name}" for name in ("membranes", "mitochondria")]
    return [str(raw), "data.z=[0,12]"], [
        f"--data={raw}",
        *named,
        "--fit-z=0:9",
        f"--score-z={score}",
    ]


def fib25(choose: bool) -> tuple[list[str], list[str]]:
    """The same for FIB-SEM."""
    store = DATA / "fib25.zarr"
    fit, score = ("70:170", "0:50") if choose else ("0:170", "190:250")
    named = [f"--data={store / 'sample2_raw'}", f"--labels=borders:{store / 'sample2_neurons'}"]
    return [str(store / "sample1_raw")], [*named, f"--fit-z={fit}", f"--score-z={score}"]


def synthetic(choose: bool) -> tuple[list[str], list[str]]:
    """The same for the volume whose truth is known."""
    if choose:
        first, second = "synthetic:shape=48x384x384,seed=301", "synthetic:shape=48x384x384,seed=302"
        return [first], [f"--data={first}", f"--score-data={second}", "--score-z=16:32"]
    store = DATA / "synthetic_ref.zarr"
    return [str(store / "train_raw")], [
        f"--data={store / 'train_raw'}",
        f"--labels={store / 'train_classes'}",
        f"--score-data={store / 'test_raw'}",
        f"--score-labels={store / 'test_classes'}",
    ]


PROTOCOLS = {"fib25": fib25, "synthetic": synthetic, "vnc": vnc}


def measure(volume: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one volume: its baselines, then every variant with every seed."""
    (address, *fixed), evaluation = PROTOCOLS[volume](options.choose)
    variants = TABLES[options.table]
    unknown = set(options.variants or ()) - set(variants)
    if unknown:
        raise SystemExit(f"no {', '.join(sorted(unknown))} in {options.table}; see --list")
    baselines = True
    for name in options.variants or variants:
        for seed in range(options.seeds):
            key = "-".join(
                [volume, name.replace(" ", "_"), str(seed)]
                + ([f"{options.steps}"] if options.steps else [])
                + [one.replace("/", "_") for one in options.set]
            )
            run, done = options.out / key, options.out / f"{key}{'-choose' * options.choose}.json"
            if not done.exists():
                settings = [*fixed, *options.set, f"run.seed={seed}"]
                if options.steps:
                    settings.append(f"run.steps={options.steps}")
                seconds = train(run, address, variants[name], settings)
                if options.audit_steps:
                    emtrain(
                        run,
                        "prove",
                        str(run),
                        f"--audit-steps={options.audit_steps}",
                        may_fail=True,
                    )
                scores = options.out / f"{key}.scores.json"
                asked = [*evaluation, f"--json={scores}"]
                emtrain(
                    run, "evaluate", str(run), *asked, *([] if baselines else ["--no-baselines"])
                )
                rows = gather(run, volume, name, seed, seconds, json.loads(scores.read_text()))
                scores.unlink()
                done.write_text(json.dumps(rows, indent=1) + "\n")
            found = json.loads(done.read_text())
            yield from (
                found if baselines else [row for row in found if row["case"] == f"{volume} {name}"]
            )
            baselines = False


def train(run: Path, address: str, variant: Settings, settings: Sequence[str]) -> float:
    """Train, and say how many seconds that took; a run that was killed goes on."""
    began = time.perf_counter()
    if (run / "config.json").exists():
        emtrain(run, "dense-ssl", "--resume", f"--out={run}")
    else:
        preset = [f"--preset=exp{one.split()[1]}" for one in variant if one.startswith("preset ")]
        given = [one for one in variant if not one.startswith("preset ")]
        quiet = [f"run.picture_every={NOWHERE}"]
        every = [f"--set={one}" for one in (*quiet, *settings, *given)]
        emtrain(run, "dense-ssl", f"--out={run}", f"--data={address}", *preset, *every)
    return time.perf_counter() - began


def emtrain(run: Path, *words: str, may_fail: bool = False) -> None:
    """Run the command; what it says goes to a file beside the run."""
    run.parent.mkdir(parents=True, exist_ok=True)
    print(f"emtrain {' '.join(words)}", file=sys.stderr, flush=True)
    log = run.with_name(run.name + ".log")
    with log.open("a") as out:
        code = subprocess.run([EMTRAIN, *words], stdout=out, stderr=out).returncode
    if code and not (may_fail and code == 1):
        raise SystemExit(f"emtrain {words[0]} ended with {code}; see {log}")


def gather(
    run: Path, volume: str, name: str, seed: int, seconds: float, scores: dict[str, Any]
) -> list[dict[str, Any]]:
    """Flat rows: baselines as they are, the run's codes, embedding and proof as one."""
    rows: list[dict[str, Any]] = []
    own: dict[str, Any] = {
        "case": f"{volume} {name}",
        "unit": "score",
        "seed": seed,
        "train_s": seconds,
    }
    for row in scores["rows"]:
        method = row["method"]
        if not method.startswith("run:"):
            rows.append({"case": f"{volume} {method}", "unit": "score", "seed": 0} | flat(row))
        elif "embedding" in method:  # its clusters are what K classes of the raw embedding would be
            own |= {"probe": row["probe_miou"], "pooled": row["pooled_probe_miou"]}
            own |= {f"raw_{key}": row[long] for key, long in RAW.items()}
        else:
            own |= {key: value for key, value in flat(row).items() if key != "probe"}
    proof = run / "proof.json"
    if proof.exists():
        found = json.loads(proof.read_text())
        own |= {"verdict": found["sentence"]} | {key: found["figures"][key] for key in PROVEN}
    return [*rows, own]


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """The scores of a row under short names."""
    names = {
        "nmi": "nmi",
        "hom": "hom",
        "m2o_miou": "miou",
        "m2o_iou": "iou",
        "hungarian_miou": "hungarian",
        "effective_classes": "classes",
        "probe_miou": "probe",
        "pooled_probe_miou": "pooled",
    }
    return {short: row[long] for long, short in names.items() if long in row}


RAW = {"nmi": "nmi", "hom": "hom", "miou": "m2o_miou"}
PROVEN = (
    *("position_leak", "shift_kappa", "dense_shift_kappa", "audit_information", "grey_share"),
    *("largest_class", "z_kappa", "photo_kappa"),
)
COLUMNS = (
    "nmi",
    "hom",
    "miou",
    "hungarian",
    "classes",
    "probe",
    "pooled",
    "raw_nmi",
    "raw_miou",
    "position_leak",
    "grey_share",
)


def show(rows: Sequence[dict[str, Any]], frame: box.Box) -> None:
    """Means over seeds, and how far the farthest is where there are several."""
    table = Table("case", "seeds", *COLUMNS, "of the classes", "seconds", "verdict", box=frame)
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        verdicts = {row.get("verdict", "") for row in own}
        cells = [
            spread([row[name] for row in own if row.get(name) is not None]) for name in COLUMNS
        ]
        classes = zip(*(row["iou"] for row in own), strict=True)
        cells.append(" ".join(f"{statistics.fmean(each):.2f}" for each in classes))
        seconds = spread([row["train_s"] for row in own if "train_s" in row], "{:.0f}")
        table.add_row(case, str(len(own)), *cells, seconds, "; ".join(sorted(verdicts)))
    print_table(table, width=240)


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """A mean, and how far the farthest seed is from it.

    >>> spread([0.5, 0.7])
    '0.600 ± 0.100'
    """
    if not values:
        return ""
    mean = statistics.fmean(values)
    farthest = max(abs(value - mean) for value in values)
    return form.format(mean) + (f" ± {form.format(farthest)}" if len(values) > 1 else "")


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    named = {
        key: value for key, value in vars(options).items() if key not in ("json", "out", "list")
    }
    return named | {"threads of a run": os.environ.get("OMP_NUM_THREADS", "all")}


if __name__ == "__main__":
    main()

"""Every command that reads a run, with every file of it damaged in every way."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from doors.arena import LABELS, learn, typed
from doors.damage import FILES, Damage, damages, spoil
from doors.trial import Case

EVALUATION = ("in/run/images/evaluation",)


REPORT = ("in/run/report.html",)


@dataclass(frozen=True)
class RunUse:
    """What a command does with a run of a recipe."""

    command: str
    arguments: tuple[str, ...]
    reads: str
    """Files that it reads; others are damaged in a few ways only, to see that nobody looks there."""
    may_change: tuple[str, ...] = ()
    done: tuple[int, ...] = (0,)


PROBE = "--data=@good --labels=@classes --fit-z 0:4 --score-z 6:8 --no-baselines --seeds 1"
EVALUATE = "evaluate @in/run --data=@good"
PREDICT = "predict @in/run --data=@good --out out.zarr"
TOLD = "config.json metrics.jsonl report.json images/*.png"  # what a report is made of
NETWORK = "config.json weights/*/config.json weights/*/model.safetensors classes.json"
STATE = "config.json metrics.jsonl checkpoints/step-*.pt checkpoints/last checkpoints/best log.txt"
RUN_USES: dict[str, tuple[RunUse, ...]] = {
    "dense-ssl": (
        RunUse("info", typed("info @in/run"), STATE),
        RunUse("info weights", typed("info @in/run/weights/encoder"), NETWORK),
        RunUse("report", typed("report @in/run"), TOLD, REPORT),
        RunUse("report of two", typed("report @run_mae @in/run --out two.html"), TOLD),
        RunUse("predict", typed(PREDICT), NETWORK),
        RunUse(
            "evaluate",
            typed(
                f"{EVALUATE} --labels=@classes --fit-z 0:4 --score-z 6:8 --no-baselines --border-vx 8"
            ),
            NETWORK,
            EVALUATION,
        ),
        RunUse("probe", typed(f"probe @in/run {PROBE}"), NETWORK),
        RunUse("probe --beside", typed(f"probe @run_mae --beside @in/run {PROBE}"), NETWORK),
        RunUse(
            "prove",
            typed("prove @in/run --audit-steps 0"),
            f"{NETWORK} {TOLD} proof.json",
            ("in/run/proof.json", "in/run/images/proof.png", *REPORT),
            done=(0, 1),
        ),
        RunUse(
            "resume",
            typed("dense-ssl --resume --out @in/run"),
            f"{STATE} {NETWORK} {TOLD} proof.json",
            ("in/run/",),
        ),
        RunUse("init", (*learn("dense-ssl", "@good"), "--init", "@in/run"), STATE),
        RunUse(
            "config",
            (*learn("dense-ssl", "@good"), "--config", "@in/run/config.json"),
            "config.json",
        ),
        RunUse(
            "segment --init", (*learn("segment", "@good", *LABELS), "--init", "@in/run"), NETWORK
        ),
    ),
    "segment": (
        RunUse("info", typed("info @in/run"), STATE),
        RunUse("info weights", typed("info @in/run/weights/network"), NETWORK),
        RunUse("report", typed("report @in/run"), TOLD, REPORT),
        RunUse("predict", typed(PREDICT), NETWORK),
        RunUse("predict with processes", typed(f"{PREDICT} --processes 1"), NETWORK),
        RunUse("evaluate", typed(EVALUATE), f"{NETWORK} scores.json", EVALUATION),
        RunUse(
            "resume",
            typed("segment --resume --out @in/run"),
            f"{STATE} {NETWORK} {TOLD} scores.json",
            ("in/run/",),
        ),
        RunUse("init", (*learn("segment", "@good", *LABELS), "--init", "@in/run"), STATE),
    ),
    "mae": (
        RunUse("info", typed("info @in/run"), STATE),
        RunUse("info weights", typed("info @in/run/weights/mae"), NETWORK),
        RunUse("report", typed("report @in/run"), TOLD, REPORT),
        RunUse("predict", typed(PREDICT), NETWORK),
        RunUse("probe", typed(f"probe @in/run {PROBE}"), NETWORK),
        RunUse(
            "resume",
            typed("mae --resume --out @in/run"),
            f"{STATE} {NETWORK} {TOLD} figures.json",
            ("in/run/",),
        ),
        RunUse("init", (*learn("mae", "@good"), "--init", "@in/run"), STATE),
    ),
    "restore": (
        RunUse("info", typed("info @in/run"), STATE),
        RunUse("info weights", typed("info @in/run/weights/network"), NETWORK),
        RunUse("report", typed("report @in/run"), TOLD, REPORT),
        RunUse("predict", typed(PREDICT), f"{NETWORK} restoration.json"),
        RunUse(
            "evaluate",
            typed(f"{EVALUATE} --fit-z 0:4 --score-z 6:8 --no-baselines"),
            f"{NETWORK} restoration.json",
            EVALUATION,
        ),
        RunUse(
            "resume",
            typed("restore --resume --out @in/run"),
            f"{STATE} {NETWORK} {TOLD} scores.json restoration.json",
            ("in/run/",),
        ),
        RunUse("init", (*learn("restore", "@good"), "--init", "@in/run"), STATE),
    ),
}
UNREAD = ("gone", "other bytes")  # damages of files that a command does not read


def damaged(source: str, file: str, damage: Damage, seed: int) -> Callable[[Path], str]:
    """A copy of a run, one file of it damaged; the path of that file."""

    def prepare(folder: Path) -> str:
        run = folder / "run"
        shutil.copytree(folder.parents[1] / source, run, symlinks=True)
        return str(spoil(run, file, damage, seed) or run)

    return prepare


def of_runs() -> Iterator[Case]:
    """Every command that reads a run, every file of it, every damage."""
    for recipe, uses in RUN_USES.items():
        for file in FILES:
            if file in ABSENT[recipe]:
                continue
            for name, damage in damages(file).items():
                for use in uses:
                    if file not in use.reads.split() and name not in UNREAD:
                        continue
                    told = f"run {recipe}, {file}: {name}"
                    seed = int(hashlib.sha256(told.encode()).hexdigest()[:6], 16)
                    yield Case(
                        command=f"{use.command} of {recipe}",
                        door=told,
                        group="damaged run",
                        arguments=use.arguments,
                        prepare=damaged(f"run-{recipe}", file, damage, seed),
                        expected="either",
                        names=names_of(file, name),
                        may_change=(*use.may_change, r"here/"),
                        notes=("in/run/log.txt",) if use.command == "resume" else (),
                        done=use.done,
                    )


def names_of(file: str, damage: str) -> tuple[str, ...]:
    """What a message about a damaged file may call it; one that is gone is missed by its run."""
    path = Path(file)
    names = [path.name.replace("step-*.pt", "step-"), *([path.parent.name] if "*" in file else [])]
    if damage in ("gone", "a dangling link", "a looping link"):
        names.append("@in/run")
    if file.startswith("weights"):
        names += ["weights/"]
    return tuple(name for name in names if "*" not in name)


# What a recipe does not write.
ABSENT = {
    "dense-ssl": (
        *("classes.json", "figures.json", "scores.json", "checkpoints/best"),
        "restoration.json",
    ),
    "segment": ("proof.json", "figures.json", "restoration.json"),
    "mae": (
        *("proof.json", "classes.json", "scores.json", "checkpoints/best"),
        "restoration.json",
    ),
    "restore": ("proof.json", "classes.json", "figures.json"),
}

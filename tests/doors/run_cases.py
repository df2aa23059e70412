"""Every command that reads a run, with every file of it damaged in every way."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from doors.arena import LABELS, Z, learn
from doors.damage import FILES, Damage, damages, spoil
from doors.trial import Case

EVALUATION = ("in/run/images/evaluation",)


@dataclass(frozen=True)
class RunUse:
    """What a command does with a run of a recipe."""

    command: str
    arguments: tuple[str, ...]
    may_change: tuple[str, ...] = ()
    done: tuple[int, ...] = (0,)


REPORT = ("in/run/report.html",)
RUN_USES: dict[str, tuple[RunUse, ...]] = {
    "dense-ssl": (
        RunUse("info", ("info", "@in/run")),
        RunUse("info weights", ("info", "@in/run/weights/encoder")),
        RunUse("report", ("report", "@in/run"), REPORT),
        RunUse("report of two", ("report", "@run_mae", "@in/run", "--out", "two.html")),
        RunUse("predict", ("predict", "@in/run", "--data=@good", "--out", "out.zarr")),
        RunUse(
            "evaluate",
            (
                "evaluate",
                "@in/run",
                "--data=@good",
                "--labels=@classes",
                *Z,
                "--no-baselines",
                "--border-vx",
                "8",
            ),
            EVALUATION,
        ),
        RunUse(
            "probe",
            (
                "probe",
                "@in/run",
                "--data=@good",
                "--labels=@classes",
                *Z,
                "--no-baselines",
                "--seeds",
                "1",
            ),
        ),
        RunUse(
            "probe --beside",
            (
                "probe",
                "@run_mae",
                "--beside",
                "@in/run",
                "--data=@good",
                "--labels=@classes",
                *Z,
                "--no-baselines",
                "--seeds",
                "1",
            ),
        ),
        RunUse(
            "shortcut",
            ("shortcut", "@in/run", "--audit-steps", "0"),
            ("in/run/proof.json", "in/run/images/shortcut.png", *REPORT),
            done=(0, 1),
        ),
        RunUse("resume", ("dense-ssl", "--resume", "--out", "@in/run"), ("in/run/",)),
        RunUse("init", (*learn("dense-ssl", "@good"), "--init", "@in/run")),
        RunUse("config", (*learn("dense-ssl", "@good"), "--config", "@in/run/config.json")),
        RunUse("segment --init", (*learn("segment", "@good", *LABELS), "--init", "@in/run")),
    ),
    "segment": (
        RunUse("info", ("info", "@in/run")),
        RunUse("info weights", ("info", "@in/run/weights/network")),
        RunUse("report", ("report", "@in/run"), REPORT),
        RunUse("predict", ("predict", "@in/run", "--data=@good", "--out", "out.zarr")),
        RunUse(
            "predict with processes",
            ("predict", "@in/run", "--data=@good", "--out", "out.zarr", "--processes", "1"),
        ),
        RunUse("evaluate", ("evaluate", "@in/run", "--data=@good"), EVALUATION),
        RunUse("resume", ("segment", "--resume", "--out", "@in/run"), ("in/run/",)),
        RunUse("init", (*learn("segment", "@good", *LABELS), "--init", "@in/run")),
    ),
    "mae": (
        RunUse("info", ("info", "@in/run")),
        RunUse("info weights", ("info", "@in/run/weights/mae")),
        RunUse("report", ("report", "@in/run"), REPORT),
        RunUse("predict", ("predict", "@in/run", "--data=@good", "--out", "out.zarr")),
        RunUse(
            "probe",
            (
                "probe",
                "@in/run",
                "--data=@good",
                "--labels=@classes",
                *Z,
                "--no-baselines",
                "--seeds",
                "1",
            ),
        ),
        RunUse("resume", ("mae", "--resume", "--out", "@in/run"), ("in/run/",)),
        RunUse("init", (*learn("mae", "@good"), "--init", "@in/run")),
    ),
}


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
                    told = f"run {recipe}, {file}: {name}"
                    seed = int(hashlib.sha256(told.encode()).hexdigest()[:6], 16)
                    yield Case(
                        command=f"{use.command} of {recipe}",
                        door=told,
                        group=file,
                        arguments=use.arguments,
                        prepare=damaged(f"run-{recipe}", file, damage, seed),
                        expected="either",
                        names=names_of(file, name),
                        may_change=(*use.may_change, r"here/"),
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
    "dense-ssl": ("classes.json", "figures.json", "scores.json", "checkpoints/best"),
    "segment": ("proof.json", "figures.json"),
    "mae": ("proof.json", "classes.json", "scores.json", "checkpoints/best"),
}

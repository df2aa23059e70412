"""Every command at every door: the table of cases, as data."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from doors.addresses import ADDRESSES
from doors.arena import LABELS, settings
from doors.damage import FILES, Damage, damages, spoil
from doors.door import Door
from doors.file_volumes import HDF5, N5, NPY, PRECOMPUTED, SLICES, TIFF
from doors.options import OPTIONS
from doors.trial import Case, Expected
from doors.zarr_volumes import OME, ZARR

VOLUMES: Sequence[Door] = (
    *(*ZARR, *OME, *NPY, *HDF5, *TIFF, *SLICES, *PRECOMPUTED, *N5, *ADDRESSES),
)
QUICK = ("--fit-z", "0:4", "--score-z", "6:8")
OUT = "here/out.zarr/zarr.json"


@dataclass(frozen=True)
class Use:
    """What a command does with a volume."""

    command: str
    arguments: tuple[str, ...]
    reads: bool = True
    """Whether it reads all voxels, so that rotten ones are refused."""
    labels: bool = False
    """Whether the volume is labels."""
    writes: tuple[str, ...] = ()
    until: str = ""
    servers: bool = False
    """Whether it is tried with addresses of servers, which takes seconds each."""


def learn(recipe: str, data: str, *more: str) -> tuple[str, ...]:
    return (recipe, f"--data={data}", *more, "--out", "run", *settings(recipe))


MADE = ("here/run/report.html", "here/run/metrics.jsonl")
EVALUATION = ("in/run/images/evaluation",)
SCORED = ("--no-baselines", "--picture", "picture.png", "--json", "scores.json")
SCORES = ("here/picture.png", "here/scores.json")
USES = (
    Use("info", ("info", "--", "@door"), reads=False, servers=True),
    Use(
        "info --thumbnail",
        ("info", "--thumbnail", "look.png", "--json", "told.json", "--", "@door"),
        reads=False,
        writes=("here/look.png", "here/told.json"),
    ),
    Use("dense-ssl", learn("dense-ssl", "@door"), writes=MADE, servers=True),
    Use("mae", learn("mae", "@door"), writes=MADE),
    Use(
        "segment",
        learn("segment", "@door", "--labels=one=@classes@1", "--labels=two=@classes@2"),
        writes=MADE,
    ),
    Use(
        "segment --labels",
        learn("segment", "@good", "--labels=one=@door"),
        labels=True,
        writes=MADE,
    ),
    Use(
        "predict dense-ssl",
        ("predict", "@run_dense", "--data=@door", "--out", "out.zarr"),
        writes=(OUT,),
        servers=True,
    ),
    Use(
        "predict segment",
        ("predict", "@run_segment", "--data=@door", "--out", "out.zarr", "--processes", "1"),
        writes=(OUT,),
    ),
    Use("predict mae", ("predict", "@run_mae", "--data=@door", "--out", "out.zarr"), writes=(OUT,)),
    Use(
        "evaluate dense-ssl",
        (
            "evaluate",
            "@run_dense",
            "--data=@door",
            "--labels=@classes",
            *QUICK,
            *SCORED,
            "--border-vx",
            "8",
        ),
        writes=SCORES,
    ),
    Use(
        "evaluate --labels",
        (
            "evaluate",
            "@run_dense",
            "--data=@good",
            "--labels=@door",
            *QUICK,
            *SCORED,
            "--border-vx",
            "8",
        ),
        labels=True,
        writes=SCORES,
    ),
    Use(
        "evaluate segment",
        (
            "evaluate",
            "@run_segment",
            "--data=@door",
            "--labels=one=@classes@1",
            "--labels=two=@classes@2",
            "--picture",
            "picture.png",
            "--json",
            "scores.json",
        ),
        writes=SCORES,
    ),
    Use(
        "evaluate segment --labels",
        (
            "evaluate",
            "@run_segment",
            "--data=@good",
            "--labels=one=@door@1",
            "--labels=two=@door@2",
            "--picture",
            "picture.png",
            "--json",
            "scores.json",
        ),
        labels=True,
        writes=SCORES,
    ),
    Use(
        "probe",
        (
            "probe",
            "@run_mae",
            "--data=@door",
            "--labels=@classes",
            *QUICK,
            "--no-baselines",
            "--seeds",
            "1",
            "--json",
            "scores.json",
        ),
        writes=("here/scores.json",),
    ),
    Use(
        "probe --labels",
        (
            "probe",
            "@run_mae",
            "--data=@good",
            "--labels=@door",
            *QUICK,
            "--no-baselines",
            "--seeds",
            "1",
            "--json",
            "scores.json",
        ),
        labels=True,
        writes=("here/scores.json",),
    ),
    Use(
        "speed",
        (
            "speed",
            "--seconds",
            "0.1",
            "--stack",
            "3,32,32",
            "--cube",
            "8,16,16",
            "--threads",
            "1",
            "--",
            "@door",
        ),
    ),
    Use("view", ("view", "--", "@door"), reads=False, until="stays until Ctrl-C"),
    Use(
        "bench-train",
        (
            "bench-train",
            "mae",
            "--steps",
            "1",
            "--rounds",
            "1",
            *settings("mae"),
            "--set",
            'data.volumes=["@door"]',
        ),
    ),
)


# What stands for an address that is empty, or that its format writes another way.
OPTION = ("@door", "--data", "--labels", "VOLUME", "data.volumes")
NAMED = {"word": (*OPTION, "nowhere", "@out"), "server": (*OPTION, "127.0.0.1", "http", "s3", "gs")}
# Groups of which the sound ones state the voxel size that labels are placed by.
SIZED = ("ome", "name", "precomputed")


def expected(door: Door, use: Use) -> Expected:
    """What a command must do at a door."""
    if door.kind == "shut":
        return "refused"
    if door.kind == "rotten":
        return "refused" if use.reads else "either"
    if door.kind == "odd" or use.labels:  # a sound volume need not be labels
        return "either"
    if "@classes" in " ".join(use.arguments) and door.group not in SIZED:
        return "either"
    return "fine"


def of_volumes() -> Iterator[Case]:
    """Every volume with every command that takes one."""
    for door in VOLUMES:
        for use in USES:
            if door.remote and not use.servers:
                continue
            yield Case(
                command=use.command,
                door=door.name,
                group=door.group,
                arguments=use.arguments,
                prepare=door.make,
                expected=expected(door, use),
                names=NAMED.get(door.group, ()),
                writes=use.writes,
                may_change=(r"here/run(/|$)", r"here/out\.zarr", r"here/picture-best\.png"),
                until=use.until,
            )


# Runs ----------------------------------------------------------------------------------------------


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
                *QUICK,
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
                *QUICK,
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
                *QUICK,
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
                *QUICK,
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


def of_options() -> Iterator[Case]:
    """Hostile values of options."""
    for option in OPTIONS:
        yield Case(
            command=option.command,
            door=option.name,
            group="options",
            arguments=option.arguments,
            prepare=option.prepare,
            expected=option.expected,
            names=option.names,
            may_change=option.may_change,
            done=option.done,
        )


def all_cases() -> list[Case]:
    """The whole pass."""
    return [*of_volumes(), *of_runs(), *of_options()]


def chosen(count: int, seed: int) -> list[Case]:
    """So many of the cases, of every command about as many."""
    rng = random.Random(seed)
    by_command: dict[str, list[Case]] = {}
    for case in all_cases():
        by_command.setdefault(case.command, []).append(case)
    for cases in by_command.values():
        rng.shuffle(cases)
    found: list[Case] = []
    while len(found) < count and any(by_command.values()):
        for cases in by_command.values():
            if cases and len(found) < count:
                found.append(cases.pop())
    return found

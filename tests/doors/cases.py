"""Every command at every door: the table of cases, as data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from doors.addresses import ADDRESSES
from doors.arena import Z, learn, settings
from doors.door import Door
from doors.file_volumes import HDF5, N5, NPY, PRECOMPUTED
from doors.options import OPTIONS
from doors.picture_volumes import SLICES, TIFF
from doors.run_cases import of_runs
from doors.trial import Case, Expected
from doors.zarr_volumes import OME, ZARR

VOLUMES: Sequence[Door] = (
    *(*ZARR, *OME, *NPY, *HDF5, *TIFF, *SLICES, *PRECOMPUTED, *N5, *ADDRESSES),
)
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


MADE = ("here/run/report.html", "here/run/metrics.jsonl")
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
            *Z,
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
            *Z,
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
            *Z,
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
            *Z,
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

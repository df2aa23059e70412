"""Every command at every door: the table of cases, as data."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from doors.addresses import ADDRESSES
from doors.arena import Z, learn, settings, typed
from doors.door import Door
from doors.file_volumes import HDF5, N5, NPY, PRECOMPUTED
from doors.image_folders import IMAGES
from doors.options import OPTIONS
from doors.picture_volumes import SLICES, TIFF
from doors.run_cases import of_runs
from doors.trial import Case, Expected
from doors.zarr_volumes import OME, ZARR

VOLUMES: Sequence[Door] = (
    *(*ZARR, *OME, *NPY, *HDF5, *TIFF, *SLICES, *PRECOMPUTED, *N5, *IMAGES, *ADDRESSES),
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
SCORES = ("here/picture.png", "here/scores.json")
FROZEN = f"{' '.join(Z)} --no-baselines --json scores.json"  # readouts of a frozen run
DENSE = f"evaluate @run_dense {FROZEN} --border-vx 8 --picture picture.png"
SEGMENT = "evaluate @run_segment --picture picture.png --json scores.json"
PROBE = f"probe @run_mae {FROZEN} --seeds 1"
CLASSES = "--labels=one=@classes@1 --labels=two=@classes@2"
USES = (
    Use("info", typed("info -- @door"), reads=False, servers=True),
    Use(
        "info --thumbnail",
        typed("info --thumbnail look.png --json told.json -- @door"),
        reads=False,
        writes=("here/look.png", "here/told.json"),
    ),
    Use("dense-ssl", learn("dense-ssl", "@door"), writes=MADE, servers=True),
    Use("mae", learn("mae", "@door"), writes=MADE),
    Use("segment", learn("segment", "@door", *typed(CLASSES)), writes=MADE),
    Use("restore", learn("restore", "@door"), writes=MADE),
    Use("restore --target", learn("restore", "@good", "--target=@door"), writes=MADE),
    Use(
        "segment --labels",
        learn("segment", "@good", "--labels=one=@door"),
        labels=True,
        writes=MADE,
    ),
    Use(
        "predict dense-ssl",
        typed("predict @run_dense --data=@door --out out.zarr"),
        writes=(OUT,),
        servers=True,
    ),
    Use(
        "predict segment",
        typed("predict @run_segment --data=@door --out out.zarr --processes 1"),
        writes=(OUT,),
    ),
    Use(
        "predict restore",
        typed("predict @run_restore --data=@door --out out.zarr"),
        writes=(OUT,),
    ),
    Use("predict mae", typed("predict @run_mae --data=@door --out out.zarr"), writes=(OUT,)),
    Use(
        "evaluate restore",
        typed(f"evaluate @run_restore {FROZEN} --picture picture.png --data=@door"),
        writes=SCORES,
    ),
    Use(
        "evaluate restore --target",
        typed(f"evaluate @run_restore {FROZEN} --picture picture.png --data=@good --target=@door"),
        writes=SCORES,
    ),
    Use("evaluate dense-ssl", typed(f"{DENSE} --data=@door --labels=@classes"), writes=SCORES),
    Use(
        "evaluate --labels",
        typed(f"{DENSE} --data=@good --labels=@door"),
        labels=True,
        writes=SCORES,
    ),
    Use("evaluate segment", typed(f"{SEGMENT} --data=@door {CLASSES}"), writes=SCORES),
    Use(
        "evaluate segment --labels",
        typed(f"{SEGMENT} --data=@good --labels=one=@door@1 --labels=two=@door@2"),
        labels=True,
        writes=SCORES,
    ),
    Use("probe", typed(f"{PROBE} --data=@door --labels=@classes"), writes=("here/scores.json",)),
    Use(
        "probe --labels",
        typed(f"{PROBE} --data=@good --labels=@door"),
        labels=True,
        writes=("here/scores.json",),
    ),
    Use(
        "speed",
        typed("speed --seconds 0.1 --stack 3,32,32 --cube 8,16,16 --threads 1 -- @door"),
    ),
    Use("view", typed("view -- @door"), reads=False, until="stays until Ctrl-C"),
    Use(
        "bench-train",
        (
            *typed("bench-train mae --steps 1 --rounds 1"),
            *settings("mae"),
            "--set",
            'data.volumes=["@door"]',
        ),
    ),
)


# What stands for an address that is empty, or that its format writes another way.
OPTION = ("@door", "--data", "--labels", "VOLUME", "data.volumes")
NAMED = {"word": (*OPTION, "nowhere", "@out"), "server": (*OPTION, "127.0.0.1", "http", "s3", "gs")}
# Groups of which the sound ones state the voxel size that labels and targets are placed by.
SIZED = ("ome", "name", "precomputed")


def expected(door: Door, use: Use) -> Expected:
    """What a command must do at a door."""
    if door.kind == "shut":
        return "refused"
    if door.kind == "rotten":
        return "refused" if use.reads else "either"
    if door.kind == "odd" or use.labels:  # a sound volume need not be labels
        return "either"
    placed = "@classes" in " ".join(use.arguments) or "--target=@door" in use.arguments
    if placed and door.group not in SIZED:
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
            notes=option.notes,
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

"""Hostile values of options: numbers that are none, ranges backwards, outputs onto inputs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from doors.arena import LABELS, settings
from doors.sound import truth, write_image
from doors.trial import Expected


@dataclass(frozen=True)
class Option:
    """A command with a hostile value."""

    command: str
    name: str
    arguments: tuple[str, ...]
    expected: Expected
    names: tuple[str, ...]
    prepare: Callable[[Path], str] = lambda folder: ""
    may_change: tuple[str, ...] = (r"here/",)
    done: tuple[int, ...] = (0,)
    notes: tuple[str, ...] = ()


DENSE = ("dense-ssl", "--data=@good", "--out", "run", *settings("dense-ssl"))
SEGMENT = ("segment", "--data=@good", "--out", "run", *settings("segment"))
MAE = ("mae", "--data=@good", "--out", "run", *settings("mae"))
RESTORE = ("restore", "--data=@good", "--out", "run", *settings("restore"))
PREDICT = ("predict", "@run_segment", "--data=@good")
EVALUATE = ("evaluate", "@run_dense", "--data=@good", "--labels=@classes", "--no-baselines")
EVALUATE += ("--border-vx", "8", "--picture", "p.png")
PROBE = ("probe", "@run_mae", "--data=@good", "--labels=@classes", "--no-baselines")
SPEED = ("speed", "@good", "--seconds", "0.1", "--stack", "3,32,32", "--cube", "8,16,16")

# Values that no number option takes; then those that some take.
NO_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "text",
    "",
    "1,5",
    "１２",
    "²",
    "0x10",
    "[]",
    "null",
    "true",
    "1e",
)
ODD_NUMBERS = ("-1", "0", "1e-300", "1e300", "9" * 30, "-" + "9" * 30, "1e18")
RANGES = (
    "5:2",
    "3:3",
    "-1:3",
    "0:" + "9" * 30,
    "a:b",
    ":",
    "4",
    "0:4:8",
    "²:³",
    "１:２",
    "",
    " 0:4",
    "0-4",
)
TRIPLES = ("", "1", "1,2", "1,2,3,4", "a,b,c", "0,0,0", "-1,2,3", "nan,1,1", "inf,1,1", "1e9,1,1")
TRIPLES += (f"{10**15},{10**15},{10**15}", "1x2x3x", "1;2;3", "²,²,²", " , , ")

SETTINGS = {
    "dense-ssl": (
        *("data.memory_gib", "data.batch_size", "data.threads", "data.samples_per_epoch"),
        *("data.stack.size_vx", "data.pixel_nm", "data.at_nm", "data.volumes", "data", "optim.lr"),
        *(
            "optim.warmup_steps",
            "run.accumulate",
            "optim.weight_decay",
            "run.seed",
            "run.log_every",
        ),
        *("model.encoder.classes", "model.predictor_width", "model.encoder.pools", "run.device"),
        *(
            "run.checkpoint_every",
            "run.keep",
            "loss.classes_at_least",
            "run.precision",
            "data.split",
        ),
    ),
    "segment": (
        *("data.memory_gib", "data.batch_size", "data.patch_vx", "data.depth_vx", "data.threads"),
        *("data.labels", "data.slices", "data.split.z", "data.ignore", "data.samples_per_epoch"),
        *("optim.lr", "model.unet.channels", "model.unet3d.kernels_z", "model.unet3d.strides_z"),
    ),
    "mae": (
        *("data.memory_gib", "data.batch_size", "data.cube.size_vx", "data.checked_cubes"),
        *("data.split.last_z", "model.encoder.width", "model.encoder.heads", "model.encoder.depth"),
        *("model.encoder.patch_vx", "model.encoder.drop_path", "model.mask_ratio", "optim.lr"),
    ),
    "restore": (
        *("data.memory_gib", "data.batch_size", "data.patch_vx", "data.checked_crops"),
        *("data.slices", "data.factor", "data.learn_from", "data.task", "data.target", "optim.lr"),
        *("loss.adversary", "loss.pixel", "loss.r1_every", "model.unet.channels", "data.damage"),
        *("model.discriminator.channels", "model.discriminator.layers", "data.modality"),
    ),
}
TRAINS = {"dense-ssl": DENSE, "segment": (*SEGMENT, *LABELS), "mae": MAE, "restore": RESTORE}
# More than any machine holds.
TOO_MUCH = {
    ("dense-ssl", "data.batch_size"): ("1000000000",),
    ("segment", "data.batch_size"): ("1000000000",),
    ("mae", "data.batch_size"): ("1000000000",),
    ("restore", "data.batch_size"): ("1000000000",),
}


def of_settings() -> Iterator[Option]:
    """`--set` of numbers, with what are none and with odd ones."""
    for recipe, keys in SETTINGS.items():
        for key in keys:
            for value in (*NO_NUMBERS, *ODD_NUMBERS, *TOO_MUCH.get((recipe, key), ())):
                shown = value if len(value) < 12 else f"{value[:3]}…"
                yield Option(
                    f"{recipe} --set",
                    f"{key}={shown}",
                    (*TRAINS[recipe], "--set", f"{key}={value}"),
                    "refused" if value == "1000000000" else "either",
                    (key, key.rpartition(".")[2], key.partition(".")[0], "not finite"),
                    # What diverges is found out when the run has begun.
                    notes=(r"here/run",) if key.startswith(("optim.", "run.")) else (),
                )
    for text in ("x", "=1", "", "a.b.c.d=1", "data.=1", ".data=1", "data..x=1", "optim.lrr=1"):
        arguments = (*DENSE, "--set", text)
        yield Option("dense-ssl --set", f"key {text!r}", arguments, "refused", (text, "--set"))


def values(
    command: str,
    arguments: Sequence[str],
    option: str,
    refused: Sequence[str] = (),
    either: Sequence[str] = (),
    **more: object,
) -> Iterator[Option]:
    """An option with values that are refused, and with some that may be taken."""
    for kinds, expected in ((refused, "refused"), (either, "either")):
        for value in kinds:
            shown = value if len(value) < 40 else f"{value[:20]}…"
            name, equals, _ = value.partition("=")
            named = (repr(name),) if name and equals else ()  # a class, in quotes
            yield Option(
                command,
                f"{option}={shown}",
                (*arguments, f"{option}={value}"),
                expected,  # type: ignore[arg-type]
                (option, *([value] if value else ()), *named),
                **more,  # type: ignore[arg-type]
            )


def of_commands() -> Iterator[Option]:
    """Options of their own."""
    whole = ("1.5", "text", "", "9" * 5000)
    yield from values("speed", SPEED, "--seconds", NO_NUMBERS, ("0", "-1", "1e-300"))
    yield from values("speed", SPEED, "--seconds", ("1e300",))
    yield from values("speed", SPEED, "--threads", (*whole, "0", "-1"), ("100000",))
    yield from values("speed", SPEED, "--memory", (*whole, "0", "-1"), ("9" * 15, "1"))
    for option in ("--stack", "--cube"):
        yield from values("speed", SPEED, option, TRIPLES)
    yield from values("speed", SPEED, "--channel", ("9", "name"), ("0", "-1", ""))
    out = (*PREDICT, "--out", "out.zarr")
    yield from values(
        "predict", out, "--memory-gib", ("nan", "text", "", "-1", "-inf"), ("0", "inf", "1e300")
    )
    yield from values("predict", out, "--block", TRIPLES[1:10], ("", *TRIPLES[10:]))
    yield from values(
        "predict", out, "--output", ("voxels", "", ",", "embedding"), ("classes,classes",)
    )
    yield from values("predict", out, "--processes", (*whole, "-1"))
    yield from values(
        "predict", out, "--dask", ("local:", "local:0", "local:-1", "local:x", "nowhere", "tcp://")
    )
    yield from values("predict", out, "--data", ("", "nowhere.zarr"))
    parted = (*out, "--output=instances", "--instances=one")
    yield from values("predict", parted, "--neck", ("nan", "-1", "text", ""), ("0", "inf", "1e300"))
    yield from values("predict", parted, "--least-px", (*whole[:3], "0", "-1"), ("9" * 30,))
    subjects = ("three", "between:three", "between:", "")
    yield from values("predict", (*out, "--output=instances"), "--instances", subjects)
    restored = ("predict", "@run_restore", "--data=@good", "--out", "out.zarr")
    yield from values(
        "predict", restored, "--strength", ("nan", "-1", "2", "text", ""), ("0", "1e-300")
    )
    yield Option(
        "predict",
        "--uncertainty of segment",
        (*out, "--uncertainty"),
        "refused",
        ("--uncertainty",),
    )
    yield Option("predict", "--resume of nothing", (*out, "--resume"), "either", ("out.zarr",))
    yield from values("evaluate", EVALUATE, "--fit-z", RANGES[:-2], RANGES[-2:])
    yield from values("evaluate", EVALUATE, "--score-z", RANGES[:-2], RANGES[-2:])
    yield from values("evaluate", EVALUATE, "--at-nm", TRIPLES[1:9], ("", *TRIPLES[9:]))
    yield from values("evaluate", EVALUATE, "--border-vx", (*whole, "-1", "9" * 9))
    yield from values("evaluate", EVALUATE, "--seed", whole[:3], ("-1", "9" * 30))
    yield from values("evaluate", EVALUATE, "--instances", ("one", "between:one", ""))
    yield from values("evaluate", EVALUATE, "--score-labels", ("@classes",))
    yield from values("evaluate", EVALUATE, "--score-data", ("nowhere.zarr", ""))
    yield from values(
        "evaluate", EVALUATE, "--labels", ("nowhere", "", "borders:", "@run_mae", "=")
    )
    yield from values("probe", PROBE, "--fit-z", RANGES[:-2], RANGES[-2:])
    yield from values("probe", PROBE, "--layers", ("", "x", "99", "-99", "1.5", "nan", "²"))
    yield from values("probe", PROBE, "--label", ("", "most", "nan", "-1", "2", "inf"), ("0", "1"))
    yield from values("probe", PROBE, "--patch", TRIPLES[1:10], ("", *TRIPLES[10:]))
    yield from values("probe", PROBE, "--seeds", (*whole, "0", "-1"))
    yield from values("probe", PROBE, "--window-vx", (*whole, "0", "-1"), ("1", "9" * 9))
    yield from values("probe", PROBE, "--beside", ("nowhere", "", "@good", "@run_segment"))
    prove = ("prove", "@run_dense", "--audit-steps=0")
    yield from values("prove", prove, "--audit-steps", (*whole, "-1"))
    yield from values("prove", prove, "--data", ("nowhere",), ("",), done=(0, 1))
    yield Option("shortcut", "its former name", ("shortcut", "@run_dense"), "refused", ("prove",))
    yield from values("info", ("info", "@good"), "--channel", ("9", "name"), ("0", "-1", ""))
    view = ("view", "@good")
    yield from values("view", view, "--layout", ("", "5panel"))
    yield from values("view", view, "--position", TRIPLES[:5])
    yield from values("view", view, "--port", ("-1", "65535", "text", "1e3"))
    yield from values("bench-train", ("bench-train", "mae"), "--steps", (*whole, "0", "-1"))
    yield from values("bench-train", ("bench-train",), "--recipe", ("x",))
    yield Option("bench-train", "no recipe", ("bench-train", "maes"), "refused", ("maes",))
    synth = ("synth", "out.zarr")
    yield from values("synth", synth, "--shape", TRIPLES)
    yield from values("synth", synth, "--voxel-nm", TRIPLES[:9])
    yield from values("synth", (*synth, "--shape=8,32,32"), "--seed", whole[:3], ("-1", "9" * 30))
    for value in ("noise=nan", "noise=text", "noise=-1", "colour=red", "x", "shape_vx=[]"):
        arguments = (*synth, "--shape=8,32,32", "--set", value)
        yield Option("synth", f"--set {value}", arguments, "refused", (value.partition("=")[0],))


def of_learning() -> Iterator[Option]:
    """Options of the commands that learn."""
    yield from values("segment", (*SEGMENT, *LABELS), "--val-z", RANGES[:-2], RANGES[-2:])
    yield from values(
        "segment", (*SEGMENT, *LABELS), "--slices", ("", "0", "-1", "x", "1,x", "²", "99999")
    )
    yield from values(
        "segment",
        SEGMENT,
        "--labels",
        ("", "=", "a=", "=classes", "a=classes@", "a=nowhere", "a=classes@x", "a=@run_mae", "@1"),
        ("a=classes@99", "a=classes@" + "9" * 30),
    )
    for recipe, arguments in TRAINS.items():
        yield from values(recipe, arguments, "--preset", ("", "none", "../default"))
        yield from values(recipe, arguments, "--init", ("", "nowhere", "@good", "@classes", "/"))
        yield from values(
            recipe, arguments, "--config", ("", "nowhere", "@good", "/dev/zero", "/dev/null")
        )
        yield from values(recipe, arguments, "--gpus", ("-1", "x", "", "9", "1.5"))
        yield from values(recipe, arguments, "--processes", ("-1", "0", "x", "", "1.5"))
        yield from values(recipe, arguments, "--slurm", ("", "x"))
        yield from values(
            recipe,
            (*arguments, "--slurm=print", "--processes=2"),
            "--sbatch",
            ("a\nrm -rf /", "--time=1\x00"),
            ("x",),
        )
        other = "@run_mae" if recipe != "mae" else "@run_segment"
        yield Option(recipe, "--init of another", (*arguments, "--init", other), "either", (other,))
        yield Option(recipe, "--resume alone", (recipe, "--resume"), "refused", ("--out",))
        for name, where in (("nothing", "nowhere"), ("a volume", "@good"), ("another", other)):
            given = (recipe, "--resume", "--out", where)
            yield Option(recipe, f"--resume of {name}", given, "refused", ("@@", "run", "emtrain"))


# Outputs -------------------------------------------------------------------------------------------


def inputs(folder: Path) -> str:
    """What outputs may fall upon: a volume with labels, a copy of a run, other people's things."""
    write_image(folder / "raw.zarr", labels=truth())
    shutil.copytree(folder.parents[1] / "run-segment", folder / "run", symlinks=True)
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.txt").write_text("years of work")
    (folder / "file.txt").write_text("years of work")
    (folder / "dangling").symlink_to(folder / "nowhere" / "else")
    (folder / "link.zarr").symlink_to("raw.zarr")
    (folder / "link-run").symlink_to("run")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    return str(folder)


OUTPUTS = {
    "the input": "@in/raw.zarr",
    "the input, another way": "@in/notes/../raw.zarr",
    "a link to the input": "@in/link.zarr",
    "in the input": "@in/raw.zarr/out.zarr",
    "labels of the input": "@in/raw.zarr/labels/classes",
    "beside the labels": "@in/raw.zarr/labels/new",
    "an array of the input": "@in/raw.zarr/0",
    "what holds the input": "@in",
    "the run": "@in/run",
    "a link to the run": "@in/link-run",
    "in the run": "@in/run/weights",
    "a folder with a text": "@in/notes",
    "a text": "@in/file.txt",
    "below a text": "@in/file.txt/out",
    "a dangling link": "@in/dangling",
    "a looping link": "@in/loop",
    "a fifo": "@in/fifo",
    "here": ".",
    "above": "..",
    "nothing": "",
}
# Where a folder is made, rather than a store replaced.
HARMLESS = ("nothing", "here", "above")


def of_outputs() -> Iterator[Option]:
    """Every command that writes, onto what is there."""
    predict = ("predict", "@in/run", "--data=@in/raw.zarr")
    for name, where in OUTPUTS.items():
        writers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            "predict --out": ((*predict, f"--out={where}"), ()),
            "predict --out --overwrite": ((*predict, f"--out={where}", "--overwrite"), ()),
            "predict --out --resume": ((*predict, f"--out={where}", "--resume"), ()),
            "synth": (("synth", "--shape=8,32,32", "--", where), ()),
            "synth --overwrite": (("synth", "--shape=8,32,32", "--overwrite", "--", where), ()),
            "dense-ssl --out": (
                ("dense-ssl", "--data=@in/raw.zarr", f"--out={where}", *DENSE[4:]),
                (),
            ),
            "segment --out": (
                ("segment", "--data=@in/raw.zarr", *LABELS, f"--out={where}", *SEGMENT[4:]),
                (),
            ),
        }
        for command, (arguments, _) in writers.items():
            # Synthetic tissue may replace any store; a prediction no part of its input.
            replaces = command == "synth --overwrite" and name in REPLACED
            yield Option(
                command,
                f"onto {name}",
                arguments,
                "either" if replaces or name in HARMLESS else "refused",
                (where, "--out", "OUT.zarr") if where else ("--out", "OUT.zarr", "''", "'.'"),
                prepare=inputs,
                may_change=(r"here/",) + ((r"in/raw\.zarr", r"in/link\.zarr") if replaces else ()),
            )
        yield Option(
            "report --out",
            f"onto {name}",
            ("report", "@in/run", f"--out={where}"),
            "refused" if name in FOLDERS else "either",
            (where, "--out"),
            prepare=inputs,
            may_change=(r"here/", re.escape(where.removeprefix("@")) or r"here/"),
        )
        if name == "a fifo":  # somebody may read there
            continue
        for option, command in {
            "--json": ("info", "@in/raw.zarr"),
            "--thumbnail": ("info", "@in/raw.zarr"),
            "--picture": ("evaluate", "@in/run", "--data=@in/raw.zarr"),
        }.items():
            yield Option(
                f"{command[0]} {option}",
                f"onto {name}",
                (*command, f"{option}={where}"),
                "either",
                (where, option),
                prepare=inputs,
                may_change=(
                    *(r"here/", re.escape(where.removeprefix("@")) or r"here/"),
                    r"in/.*-best(\.\w+)?$",
                ),
            )


# What no file can replace.
FOLDERS = (
    *("the input", "the input, another way", "a link to the input", "labels of the input"),
    *("an array of the input", "what holds the input", "the run", "a link to the run"),
    *("in the run", "a folder with a text", "below a text"),
)
REPLACED = (
    *("the input", "the input, another way", "a link to the input", "an array of the input"),
    "labels of the input",
)
OPTIONS: Sequence[Option] = (*of_settings(), *of_commands(), *of_learning(), *of_outputs())

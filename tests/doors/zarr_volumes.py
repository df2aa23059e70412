"""Zarr and OME-Zarr as they should not be: every row of a table changes one thing in a sound image."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from doors.door import Make, table
from doors.sound import (
    SHAPE,
    SIZE_NM,
    Change,
    grey,
    image_meta,
    truth,
    write_image,
    write_labels,
)

# Changes of the description ------------------------------------------------------------------------


def ome(change: Change) -> Make:
    def make(folder: Path) -> str:
        return str(write_image(folder / "image.zarr", ome=change))

    return make


def array(change: Change) -> Make:
    def make(folder: Path) -> str:
        return str(write_image(folder / "image.zarr", array=change))

    return make


def multiscale(**values: Any) -> Make:
    return ome(lambda d: d["multiscales"][0].update(copy.deepcopy(values)))


def dataset(**values: Any) -> Make:
    return ome(lambda d: d["multiscales"][0]["datasets"][0].update(copy.deepcopy(values)))


def placed(origin_nm: Any = (0.0, 0.0, 0.0), size_nm: Any = SIZE_NM) -> Make:
    return ome(lambda d: d.update(image_meta(origin_nm, size_nm)))


def meta(**values: Any) -> Make:
    return array(lambda d: d.update(copy.deepcopy(values)))


def grid(*chunk: Any) -> Make:
    return meta(chunk_grid={"name": "regular", "configuration": {"chunk_shape": list(chunk)}})


def axes(*names: Any, **values: Any) -> Make:
    described = [{"name": n, "type": "space", "unit": "nanometer"} | values for n in names]
    return multiscale(axes=described)


def voxels(change: Callable[[np.ndarray], None], dtype: Any = np.float32) -> Make:
    def make(folder: Path) -> str:
        changed = grey(dtype=dtype)
        with np.errstate(over="ignore"):
            change(changed)
        return str(write_image(folder / "image.zarr", changed))

    return make


def chunk(spoil: Callable[[Path], None]) -> Make:
    """One chunk, which the first crops and the middle need, spoiled."""

    def make(folder: Path) -> str:
        at = write_image(folder / "image.zarr")
        for file in (at / "0" / "c").rglob("*"):
            if file.is_file():
                spoil(file)
        return str(at)

    return make


def root(spoil: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> str:
        at = write_image(folder / "image.zarr")
        spoil(at / "zarr.json")
        return str(at)

    return make


def inner(spoil: Callable[[Path], None]) -> Make:
    def make(folder: Path) -> str:
        at = write_image(folder / "image.zarr")
        spoil(at / "0" / "zarr.json")
        return str(at)

    return make


def listed(names: Any) -> Make:
    def make(folder: Path) -> str:
        at = write_image(folder / "image.zarr")
        write_labels(at, names)
        return str(at)

    return make


# What can happen to a file -------------------------------------------------------------------------


def holds(content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda file: (file.unlink(), file.write_bytes(raw), None)[-1]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def looping(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def link_elsewhere(file: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


def v2(spoil: Callable[[Path], None] | None = None, **values: Any) -> Make:
    """A plain array in zarr v2."""

    def make(folder: Path) -> str:
        at = folder / "array.zarr"
        at.mkdir()
        described = {
            **{"zarr_format": 2, "shape": list(SHAPE), "chunks": list(SHAPE), "dtype": "|u1"},
            **{"order": "C", "fill_value": 0, "filters": None, "compressor": None},
        }
        (at / ".zarray").write_text(json.dumps(described | values))
        (at / "0.0.0").write_bytes(grey().tobytes())
        if spoil:
            spoil(at / ".zarray")
        return str(at)

    return make


def set_nan(v: np.ndarray) -> None:
    v[4:7, 20:50, 20:50] = np.nan


def set_inf(v: np.ndarray) -> None:
    v[5, 40, 40] = np.inf


NUMBERS = {"null": None, "text": "eight", "list": [], "true": True}
ZARR = table(
    "zarr",
    {
        "sound": ("fine", lambda f: str(write_image(f / "image.zarr"))),
        "nan block": ("rotten", voxels(set_nan)),
        "one infinite voxel": ("rotten", voxels(set_inf)),
        "only nan": ("rotten", voxels(lambda v: v.fill(np.nan))),
        "largest floats": ("odd", voxels(lambda v: v.__imul__(1e36))),
        "one value": ("odd", voxels(lambda v: v.fill(3), np.uint8)),
        "negative numbers": ("fine", voxels(lambda v: v.__isub__(200), np.int16)),
        "64-bit numbers": ("odd", voxels(lambda v: v.__iadd__(2**62), np.uint64)),
        "float16": ("odd", voxels(lambda v: None, np.float16)),
        "no slices": ("shut", meta(shape=[0, 96, 96])),
        "10^15 along z": ("odd", meta(shape=[10**15, 96, 96])),
        "10^15 along all": ("odd", meta(shape=[10**15] * 3)),
        "10^30 along all": ("odd", meta(shape=[10**30] * 3)),
        "negative shape": ("shut", meta(shape=[12, -96, 96])),
        "shape of text": ("shut", meta(shape=["12", "96", "96"])),
        "shape of floats": ("odd", meta(shape=[12.5, 96.0, 96.0])),
        "shape null": ("shut", meta(shape=None)),
        "two axes": ("shut", meta(shape=[96, 96])),
        "chunks of 0": ("shut", grid(0, 48, 48)),
        "chunks of -1": ("shut", grid(-1, 48, 48)),
        "chunks of 10^12": ("rotten", grid(10**12, 10**12, 10**12)),
        "two chunk sizes": ("shut", grid(40, 40)),
        "complex": ("shut", meta(data_type="complex64", fill_value=[0, 0])),
        "strings": ("shut", meta(data_type="string", fill_value="")),
        "unknown type": ("shut", meta(data_type="uint9")),
        "fill value of text": ("shut", meta(fill_value="abc")),
        "no codecs": ("shut", meta(codecs=[])),
        "unknown codec": ("shut", meta(codecs=[{"name": "magic"}])),
        "gzip of what is none": (
            "rotten",
            meta(
                codecs=[
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "gzip", "configuration": {"level": 1}},
                ]
            ),
        ),
        "transpose that is none": (
            "shut",
            meta(
                codecs=[
                    {"name": "transpose", "configuration": {"order": [0, 0, 7]}},
                    {"name": "bytes", "configuration": {"endian": "little"}},
                ]
            ),
        ),
        "unknown node": ("shut", meta(node_type="thing")),
        "format 9": ("shut", meta(zarr_format=9)),
        "chunk truncated": ("rotten", chunk(cut)),
        "chunk empty": ("rotten", chunk(holds(b""))),
        "chunk a fifo": ("rotten", chunk(fifo)),
        "chunk a folder": ("rotten", chunk(folder_instead)),
        "chunk a dangling link": ("odd", chunk(dangling)),
        "chunk a looping link": ("rotten", chunk(looping)),
        "chunk another file": ("rotten", chunk(link_elsewhere)),
        "metadata empty": ("shut", root(holds(""))),
        "metadata truncated": ("shut", root(cut)),
        "metadata null": ("shut", root(holds("null"))),
        "metadata a list": ("shut", root(holds("[1, 2]"))),
        "metadata a number": ("shut", root(holds("17"))),
        "metadata bytes": ("shut", root(holds(bytes(range(256))))),
        "metadata nested": ("shut", root(holds("[" * 100_000))),
        "metadata NaN": ("shut", root(holds('{"zarr_format": NaN}'))),
        "metadata digits": ("shut", root(holds('{"zarr_format": ' + "9" * 5000 + "}"))),
        "metadata a folder": ("shut", root(folder_instead)),
        "metadata a dangling link": ("shut", root(dangling)),
        "metadata a looping link": ("shut", root(looping)),
        "metadata a fifo": ("shut", root(fifo)),
        "array metadata empty": ("shut", inner(holds(""))),
        "array metadata null": ("shut", inner(holds("null"))),
        "array metadata gone": ("shut", inner(lambda f: f.unlink())),
        "array metadata a folder": ("shut", inner(folder_instead)),
        "array metadata a dangling link": ("shut", inner(dangling)),
        "v2 sound": ("fine", v2()),
        "v2 empty": ("shut", v2(holds(""))),
        "v2 null": ("shut", v2(holds("null"))),
        "v2 objects": ("shut", v2(dtype="|O")),
        "v2 records": ("shut", v2(dtype=[["a", "|u1"]])),
        "v2 unknown compressor": ("shut", v2(compressor={"id": "magic"})),
        "v2 pickle": ("shut", v2(dtype="|O", filters=[{"id": "pickle"}])),
        "v2 blosc of what is none": (
            "rotten",
            v2(compressor={"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1}),
        ),
        "v2 nan shape": ("shut", v2(shape=[float("nan"), 96, 96])),
    },
)

OME = table(
    "ome",
    {
        "nothing": ("shut", ome(lambda d: d.clear())),
        **{
            f"multiscales {name}": ("shut", ome(lambda d, v=value: d.update(multiscales=v)))
            for name, value in {
                **{"null": None, "an empty list": [], "text": "text", "number": 7},
                **{"an empty dict": {}, "list of null": [None], "list of lists": [[]]},
                "a dict": image_meta()["multiscales"][0],
            }.items()
        },
        **{
            f"datasets {name}": ("shut", multiscale(datasets=value))
            for name, value in {
                **{"null": None, "an empty list": [], "text": "0", "list of null": [None]},
                **{"a dict": {"path": "0"}, "list of text": ["0"], "number": 0},
            }.items()
        },
        "no path": ("shut", dataset(path=None)),
        "path a number": ("odd", dataset(path=0)),
        "path a list": ("shut", dataset(path=["0"])),
        "path nowhere": ("shut", dataset(path="7")),
        "path outside": ("shut", dataset(path="../../../../etc")),
        "path the group": ("shut", dataset(path="")),
        "no axes": ("shut", multiscale(axes=None)),
        "axes of text": ("odd", multiscale(axes=["z", "y", "x"])),
        "axes of numbers": ("shut", multiscale(axes=[0, 1, 2])),
        "axes x y z": ("shut", axes("x", "y", "z")),
        "axes y x": ("shut", axes("y", "x")),
        "axes z z z": ("shut", axes("z", "z", "z")),
        "axes without names": ("shut", axes(None, None, None)),
        "four axes": ("shut", axes("c", "z", "y", "x")),
        "unknown unit": ("shut", axes("z", "y", "x", unit="furlong")),
        "unit a number": ("shut", axes("z", "y", "x", unit=9)),
        "unit a list": ("shut", axes("z", "y", "x", unit=["nm"])),
        **{
            f"scale {name}": ("shut", placed(size_nm=value))
            for name, value in {
                **{"nan": [math.nan, 8, 8], "infinite": [math.inf, 8, 8], "zero": [0, 8, 8]},
                **{"negative": [-8, 8, 8], "of two": [8, 8], "of four": [8, 8, 8, 8]},
                **{"of text": ["a", "b", "c"], "of null": [None] * 3, "of lists": [[8], [8], [8]]},
            }.items()
        },
        "scale tiny": ("odd", placed(size_nm=[1e-300, 1e-300, 1e-300])),
        "scale enormous": ("odd", placed(size_nm=[1e300, 1e300, 1e300])),
        **{
            f"origin {name}": ("shut", placed(origin_nm=value))
            for name, value in {
                **{"nan": [math.nan, 0, 0], "infinite": [math.inf, 0, 0], "of two": [0, 0]},
                **{"of text": ["a", "b", "c"], "of null": [None] * 3},
            }.items()
        },
        "origin enormous": ("odd", placed(origin_nm=[1e308, -1e308, 0])),
        **{
            f"transformations {name}": ("shut", dataset(coordinateTransformations=value))
            for name, value in {
                **{"null": None, "text": "scale", "number": 1, "list of null": [None]},
                "unknown": [{"type": "rotation", "rotation": [1, 0, 0]}],
                "without numbers": [{"type": "scale"}],
            }.items()
        },
        **{
            f"channels {name}": ("odd", ome(lambda d, v=value: d.update(omero=v)))
            for name, value in {
                **{"null": None, "text": "a", "dict": {"channels": {}}, "list": []},
                **{"of null": {"channels": [None]}, "no name": {"channels": [{}]}},
            }.items()
        },
        "labels numbers": ("odd", listed([1, 2])),
        "labels null": ("odd", listed(None)),
        "labels text": ("odd", listed("classes")),
        "labels a dict": ("odd", listed({"classes": 1})),
        "labels not there": ("odd", listed(["nowhere"])),
        "labels outside": ("odd", listed(["../../../etc"])),
        "labels of lists": ("odd", listed([["classes"]])),
        "labels broken": (
            "odd",
            lambda f: (
                write_image(f / "image.zarr", labels=truth()),
                (f / "image.zarr/labels/zarr.json").write_text("{"),
                str(f / "image.zarr"),
            )[-1],
        ),
        "labels classes broken": (
            "odd",
            lambda f: (
                write_image(f / "image.zarr", labels=truth()),
                (f / "image.zarr/labels/classes/zarr.json").write_text("null"),
                str(f / "image.zarr"),
            )[-1],
        ),
    },
)

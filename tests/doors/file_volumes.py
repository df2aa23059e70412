"""Volumes in files, as they should not be: .npy, HDF5, precomputed, N5."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from doors.door import Make, table
from doors.sound import SHAPE, grey
from doors.zarr_volumes import cut


def file(name: str, write: Callable[[Path], Any]) -> Make:
    """A door that is one file."""

    def make(folder: Path) -> str:
        at = folder / name
        write(at)
        return str(at)

    return make


def then(write: Callable[[Path], Any], spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Written, then spoiled."""
    return lambda at: (write(at), spoil(at), None)[-1]


# .npy ----------------------------------------------------------------------------------------------


def npy(
    shape: str, dtype: str = "'|u1'", order: str = "False", body: bytes = bytes(64)
) -> Callable[[Path], Any]:
    """A file with a header by hand."""
    head = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head))
    return lambda at: at.write_bytes(start + head + body)


def saved(voxels: np.ndarray, pickled: bool = False) -> Callable[[Path], Any]:
    return lambda at: np.save(at, voxels, allow_pickle=pickled)


NPY = table(
    "npy",
    {
        "sound": ("fine", file("raw.npy", saved(grey()))),
        "columns first": ("fine", file("raw.npy", saved(np.asfortranarray(grey())))),
        "big-endian": ("fine", file("raw.npy", saved(grey(dtype=np.uint16).astype(">u2")))),
        "bool": ("odd", file("raw.npy", saved(grey() > 110))),
        "negative shape": ("shut", file("raw.npy", npy("(-12, 96, 96)"))),
        "negative shape twice": (
            "shut",
            file("raw.npy", npy("(-12, -96, 96)", body=bytes(110592))),
        ),
        "no voxels": ("shut", file("raw.npy", npy("(0, 96, 96)"))),
        "10^15 voxels": ("shut", file("raw.npy", npy("(100000, 100000, 100000)"))),
        "10^40 voxels": ("shut", file("raw.npy", npy(f"({10**20}, {10**20}, 1)"))),
        "shape of floats": ("shut", file("raw.npy", npy("(12.5, 96, 96)"))),
        "shape of text": ("shut", file("raw.npy", npy("'abc'"))),
        "code for a shape": ("shut", file("raw.npy", npy("__import__('os').system('true')"))),
        "objects": (
            "shut",
            file("raw.npy", saved(np.array([[[None, 1]]], object), pickled=True)),
        ),
        "records": ("shut", file("raw.npy", saved(np.zeros(SHAPE, [("a", "u1"), ("b", "f4")])))),
        "complex": ("shut", file("raw.npy", saved(grey().astype(np.complex64)))),
        "dates": ("shut", file("raw.npy", saved(grey().astype("M8[s]")))),
        "unknown type": ("shut", file("raw.npy", npy("(12, 96, 96)", "'|z9'"))),
        "two axes": ("shut", file("raw.npy", saved(grey()[0]))),
        "four axes": ("shut", file("raw.npy", saved(grey()[None]))),
        "a scalar": ("shut", file("raw.npy", saved(np.array(3)))),
        "nan": ("rotten", file("raw.npy", saved(np.full(SHAPE, np.nan, np.float32)))),
        "truncated": ("shut", file("raw.npy", then(saved(grey()), cut))),
        "header only": ("shut", file("raw.npy", npy("(12, 96, 96)", body=b""))),
        "broken header": ("shut", file("raw.npy", npy("(12,", "'|u1", "None"))),
        "version 9": (
            "shut",
            file("raw.npy", lambda at: at.write_bytes(b"\x93NUMPY\x09\x00" + bytes(200))),
        ),
        "magic only": ("shut", file("raw.npy", lambda at: at.write_bytes(b"\x93NUMPY"))),
        "empty": ("shut", file("raw.npy", lambda at: at.write_bytes(b""))),
        "a pickle": ("shut", file("raw.npy", lambda at: at.write_bytes(pickle.dumps([1, 2])))),
        "text": ("shut", file("raw.npy", lambda at: at.write_text("voxels, honestly\n"))),
        "a folder": ("shut", file("raw.npy", lambda at: at.mkdir())),
        "a fifo": ("shut", file("raw.npy", os.mkfifo)),
        "a dangling link": ("shut", file("raw.npy", lambda at: at.symlink_to("nowhere"))),
        "a looping link": ("shut", file("raw.npy", lambda at: at.symlink_to("raw.npy"))),
        "a device": ("shut", file("raw.npy", lambda at: at.symlink_to("/dev/zero"))),
    },
)


# HDF5 ----------------------------------------------------------------------------------------------


def h5(build: Callable[[Any], Any], dataset: str = "") -> Make:
    """A file that `build` fills; `dataset` is named in the address."""

    def make(folder: Path) -> str:
        import h5py

        with h5py.File(folder / "raw.h5", "w") as opened:
            build(opened)
        return f"{folder / 'raw.h5'}{dataset}"

    return make


def with_attributes(**attributes: Any) -> Make:
    return h5(lambda f: f.create_dataset("raw", data=grey()).attrs.update(attributes))


def cyclic(opened: Any) -> None:
    """A group that is its own child, and a dataset."""
    inner = opened.create_group("a").create_group("b")
    inner["a"] = opened["a"]
    opened["raw"] = grey()


def soft_cycle(opened: Any) -> None:
    import h5py

    opened["a"], opened["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def deep(opened: Any) -> None:
    here = opened
    for _ in range(2000):
        here = here.create_group("g")
    here["raw"] = grey()


def broken_chunks(opened: Any) -> None:
    made = opened.create_dataset("raw", SHAPE, np.uint8, chunks=SHAPE, compression="gzip")
    made.id.write_direct_chunk((0, 0, 0), b"no deflate stream at all", 0)


def external(name: str) -> Callable[[Any], Any]:
    import h5py

    return lambda f: f.__setitem__("raw", h5py.ExternalLink(name, "/raw"))


def plain_h5(at: Path) -> None:
    import h5py

    with h5py.File(at, "w") as opened:
        opened["raw"] = grey()


HDF5 = table(
    "hdf5",
    {
        "sound": ("fine", h5(lambda f: f.__setitem__("raw", grey()))),
        "named": ("fine", h5(lambda f: f.__setitem__("a/raw", grey()), "::a/raw")),
        "no such dataset": ("shut", h5(lambda f: f.__setitem__("raw", grey()), "::other")),
        "a group": ("shut", h5(lambda f: f.__setitem__("a/raw", grey()), "::a")),
        "the root": ("shut", h5(lambda f: f.__setitem__("raw", grey()), "::/")),
        "no name": ("odd", h5(lambda f: f.__setitem__("raw", grey()), "::")),
        "two names": ("shut", h5(lambda f: f.__setitem__("raw", grey()), "::raw::raw")),
        "dots": ("shut", h5(lambda f: f.__setitem__("raw", grey()), "::../../raw")),
        "nothing in it": ("shut", h5(lambda f: None)),
        "several": ("shut", h5(lambda f: f.update(a=grey(), b=grey()))),
        "a hard cycle": ("odd", h5(cyclic)),
        "a soft cycle": ("shut", h5(soft_cycle)),
        "a soft cycle named": ("shut", h5(soft_cycle, "::a")),
        "an external link": ("shut", h5(external("nowhere.h5"), "::raw")),
        "an external link to itself": ("shut", h5(external("raw.h5"), "::raw")),
        "2000 groups deep": ("odd", h5(deep)),
        "broken chunks": ("rotten", h5(broken_chunks)),
        "records": (
            "shut",
            h5(lambda f: f.__setitem__("raw", np.zeros(SHAPE, [("a", "u1"), ("b", "u1")]))),
        ),
        "text": ("shut", h5(lambda f: f.__setitem__("raw", "voxels"), "::raw")),
        "no voxels": ("shut", h5(lambda f: f.__setitem__("raw", np.zeros((0, 96, 96), np.uint8)))),
        "10^15 declared": (
            "odd",
            h5(lambda f: f.create_dataset("raw", (10**5,) * 3, np.uint8, chunks=(1, 64, 64))),
        ),
        "nan": ("rotten", h5(lambda f: f.__setitem__("raw", np.full(SHAPE, np.nan, np.float32)))),
        "size nan": ("shut", with_attributes(resolution=[math.nan, 8, 8])),
        "size 0": ("shut", with_attributes(element_size_um=[0, 0.008, 0.008])),
        "size negative": ("shut", with_attributes(resolution=[-8, 8, 8])),
        "size of text": ("odd", with_attributes(resolution="eight")),
        "size of three texts": ("shut", with_attributes(resolution=["a", "b", "c"])),
        "origin nan": ("shut", with_attributes(resolution=[8, 8, 8], offset=[math.nan, 0, 0])),
        "origin infinite": ("shut", with_attributes(resolution=[8, 8, 8], offset=[math.inf, 0, 0])),
        "axistags broken": ("shut", with_attributes(axistags="{")),
        "axistags null": ("shut", with_attributes(axistags="null")),
        "axistags number": ("shut", with_attributes(axistags=7)),
        "truncated": ("shut", file("raw.h5", then(plain_h5, cut))),
        "magic only": ("shut", file("raw.h5", lambda at: at.write_bytes(b"\x89HDF\r\n\x1a\n"))),
        "zeros after the magic": (
            "shut",
            file("raw.h5", lambda at: at.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))),
        ),
    },
)


# Precomputed and N5 --------------------------------------------------------------------------------


def precomputed(change: Callable[[dict[str, Any]], Any] = dict, text: str | None = None) -> Make:
    def make(folder: Path) -> str:
        at = folder / "volume"
        (at / "8_8_8").mkdir(parents=True)
        (folder / "outside").mkdir()
        scale = {
            **{"key": "8_8_8", "size": [96, 96, 12], "resolution": [8, 8, 8]},
            **{"voxel_offset": [0, 0, 0], "chunk_sizes": [[96, 96, 12]], "encoding": "raw"},
        }
        info = {
            **{"@type": "neuroglancer_multiscale_volume", "type": "image", "data_type": "uint8"},
            **{"num_channels": 1, "scales": [scale]},
        }
        change(info)
        (at / "info").write_text(json.dumps(info) if text is None else text)
        for inside in (at / "8_8_8", folder / "outside"):
            (inside / "0-96_0-96_0-12").write_bytes(grey().tobytes())
        return str(at)

    return make


def scale(**values: Any) -> Make:
    return precomputed(lambda info: info["scales"][0].update(values))


PRECOMPUTED = table(
    "precomputed",
    {
        "sound": ("fine", precomputed()),
        "key outside": ("shut", scale(key="../outside")),
        "key far outside": ("shut", scale(key="8_8_8/../../outside")),
        "key absolute": ("shut", scale(key="/etc")),
        "key a number": ("shut", scale(key=8)),
        "key null": ("shut", scale(key=None)),
        "key empty": ("odd", scale(key="")),
        "key nowhere": ("odd", scale(key="9_9_9")),
        "size 0": ("shut", scale(size=[0, 96, 12])),
        "size negative": ("shut", scale(size=[96, -96, 12])),
        "size of two": ("shut", scale(size=[96, 96])),
        "size of text": ("shut", scale(size=["96", "96", "12"])),
        "size 10^15": ("odd", scale(size=[10**15] * 3)),
        "resolution nan": ("shut", scale(resolution=[math.nan, 8, 8])),
        "resolution 0": ("shut", scale(resolution=[0, 8, 8])),
        "resolution negative": ("shut", scale(resolution=[-8, 8, 8])),
        "resolution null": ("shut", scale(resolution=None)),
        "offset nan": ("shut", scale(voxel_offset=[math.nan, 0, 0])),
        "offset of text": ("shut", scale(voxel_offset="abc")),
        "offset 10^18": ("odd", scale(voxel_offset=[10**18, 0, 0])),
        "chunks of 0": ("shut", scale(chunk_sizes=[[0, 96, 12]])),
        "no chunks": ("shut", scale(chunk_sizes=[])),
        "encoding unknown": ("shut", scale(encoding="magic")),
        "encoding a list": ("shut", scale(encoding=["raw"])),
        "jpeg that is none": ("rotten", scale(encoding="jpeg")),
        "no scales": ("shut", precomputed(lambda info: info.update(scales=[]))),
        "scales null": ("shut", precomputed(lambda info: info.update(scales=None))),
        "scales of null": ("shut", precomputed(lambda info: info.update(scales=[None]))),
        "another type": ("shut", precomputed(lambda info: info.update({"@type": "meshes"}))),
        "unknown data type": ("shut", precomputed(lambda info: info.update(data_type="uint9"))),
        "no channels": ("shut", precomputed(lambda info: info.update(num_channels=0))),
        "info empty": ("shut", precomputed(text="")),
        "info null": ("shut", precomputed(text="null")),
        "info a list": ("shut", precomputed(text="[]")),
        "info nested": ("shut", precomputed(text="[" * 100_000)),
    },
)


def n5(text: str | None = None, **values: Any) -> Make:
    def make(folder: Path) -> str:
        at = folder / "volume.n5"
        at.mkdir()
        described = {
            **{"dimensions": [96, 96, 12], "blockSize": [96, 96, 12], "dataType": "uint8"},
            "compression": {"type": "raw"},
        }
        (at / "attributes.json").write_text(
            json.dumps(described | values) if text is None else text
        )
        head = struct.pack(">HHIII", 0, 3, 96, 96, 12)
        (at / "0" / "0").mkdir(parents=True)
        (at / "0" / "0" / "0").write_bytes(head + grey().tobytes())
        return str(at)

    return make


N5 = table(
    "n5",
    {
        "sound": ("fine", n5()),
        "no dimensions": ("shut", n5(dimensions=None)),
        "dimensions negative": ("shut", n5(dimensions=[96, -96, 12])),
        "dimensions 0": ("shut", n5(dimensions=[96, 0, 12])),
        "two dimensions": ("shut", n5(dimensions=[96, 96], blockSize=[96, 96])),
        "block of 0": ("shut", n5(blockSize=[0, 96, 12])),
        "unknown type": ("shut", n5(dataType="uint9")),
        "unknown compression": ("shut", n5(compression={"type": "magic"})),
        "gzip that is none": ("rotten", n5(compression={"type": "gzip"})),
        "resolution nan": ("shut", n5(resolution=[math.nan, 8, 8], units=["nm"] * 3)),
        "units of numbers": ("odd", n5(resolution=[8, 8, 8], units=[1, 2, 3])),
        "attributes empty": ("shut", n5("")),
        "attributes null": ("shut", n5("null")),
        "attributes a list": ("shut", n5("[]")),
        "attributes without anything": ("shut", n5("{}")),
    },
)

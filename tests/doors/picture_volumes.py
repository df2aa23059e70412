"""Volumes of pictures, as they should not be: TIFF, and folders of slices."""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from doors.door import Make, table
from doors.file_volumes import file, then
from doors.sound import SHAPE, grey
from doors.zarr_volumes import cut, dangling, folder_instead, holds

PNG_START = b"\x89PNG\r\n\x1a\n"


# TIFF ----------------------------------------------------------------------------------------------


def tif(voxels: np.ndarray | None = None, **options: Any) -> Callable[[Path], Any]:
    def write(at: Path) -> None:
        import tifffile

        tifffile.imwrite(at, grey() if voxels is None else voxels, **options)

    return write


def pages(*shapes: Sequence[int]) -> Callable[[Path], Any]:
    def write(at: Path) -> None:
        import tifffile

        with tifffile.TiffWriter(at) as writer:
            for shape in shapes:
                writer.write(grey(tuple(shape)), contiguous=False)

    return write


def palette_tif(at: Path) -> None:
    """Indices of which the greys run backwards."""
    ramp = np.arange(255, -1, -1, dtype=np.uint16) * 257
    tif(photometric="palette", colormap=np.stack([ramp] * 3))(at)


def first_offset(value: int) -> Callable[[Path], None]:
    def spoil(at: Path) -> None:
        raw = bytearray(at.read_bytes())
        raw[4:8] = struct.pack("<I", value)
        at.write_bytes(raw)

    return spoil


def ome_xml(text: str) -> Callable[[Path], Any]:
    return tif(description=text, metadata=None)


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
    + "]><OME>&a9;</OME>"
)
SIZED = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I:0">'
    '<Pixels ID="P:0" DimensionOrder="XYZCT" Type="uint8" SizeX="96" SizeY="96" SizeZ="12" SizeC="1" '
    'SizeT="1" PhysicalSizeX="{0}" PhysicalSizeY="{0}" PhysicalSizeZ="{0}"><TiffData/></Pixels></Image></OME>'
)
TIFF = table(
    "tiff",
    {
        "sound": ("fine", file("raw.tif", tif())),
        "compressed": ("fine", file("raw.tif", tif(compression="zlib"))),
        "palette": ("odd", file("raw.tif", palette_tif)),
        "white is zero": ("odd", file("raw.tif", tif(photometric="miniswhite"))),
        "colours": ("shut", file("raw.tif", tif(grey((12, 96, 96, 3)), photometric="rgb"))),
        "one page": ("odd", file("raw.tif", tif(grey((96, 96))))),
        "pages of two sizes": ("shut", file("raw.tif", pages((96, 96), (96, 97)))),
        "nan": ("rotten", file("raw.tif", tif(np.full(SHAPE, np.nan, np.float32)))),
        "complex": ("shut", file("raw.tif", tif(grey().astype(np.complex64)))),
        "truncated": ("shut", file("raw.tif", then(tif(), cut))),
        "truncated, compressed": ("shut", file("raw.tif", then(tif(compression="zlib"), cut))),
        "first page beyond the end": ("shut", file("raw.tif", then(tif(), first_offset(2**31)))),
        "first page at 0": ("shut", file("raw.tif", then(tif(), first_offset(0)))),
        "first page in the header": ("shut", file("raw.tif", then(tif(), first_offset(4)))),
        "magic only": ("shut", file("raw.tif", lambda at: at.write_bytes(b"II*\0"))),
        "zeros": ("shut", file("raw.tif", lambda at: at.write_bytes(b"II*\0" + bytes(500)))),
        "empty": ("shut", file("raw.tif", lambda at: at.write_bytes(b""))),
        "xml broken": ("odd", file("raw.ome.tif", ome_xml("<OME><Image></OME>"))),
        "xml laughs": ("odd", file("raw.ome.tif", ome_xml(LAUGHS))),
        "xml size nan": ("odd", file("raw.ome.tif", ome_xml(SIZED.format("nan")))),
        "xml size of text": ("odd", file("raw.ome.tif", ome_xml(SIZED.format("eight")))),
        "xml size negative": ("odd", file("raw.ome.tif", ome_xml(SIZED.format("-8")))),
        "imagej size nan": (
            "odd",
            file("raw.tif", tif(imagej=True, metadata={"spacing": math.nan, "unit": "nm"})),
        ),
    },
)


# Slices --------------------------------------------------------------------------------------------


def slices(
    names: Sequence[str], spoil: Callable[[Path], Any] | None = None, which: int = 2
) -> Make:
    """A folder of PNG or TIFF files, of which one may be spoiled."""

    def make(folder: Path) -> str:
        from PIL import Image

        at = folder / "stack"
        at.mkdir()
        for name, plane in zip(names, np.resize(grey(), (len(names), 96, 96)), strict=True):
            if name.endswith(".png"):
                Image.fromarray(plane).save(at / name)
            else:
                tif(plane)(at / name)
        if spoil:
            spoil(at / names[which])
        return str(at)

    return make


def png(voxels: np.ndarray, mode: str | None = None) -> Callable[[Path], None]:
    def write(at: Path) -> None:
        from PIL import Image

        picture = Image.fromarray(voxels)
        (picture.convert(mode) if mode else picture).save(at)

    return write


def palette_png(at: Path) -> None:
    from PIL import Image

    picture = Image.new("P", (96, 96))
    picture.putdata(grey()[0].ravel().tolist())
    picture.putpalette([v for i in range(256) for v in (255 - i,) * 3])
    picture.save(at)


def png_of(width: int, height: int, body: bytes = b"") -> Callable[[Path], None]:
    """A PNG that says it is so large."""

    def write(at: Path) -> None:
        def part(kind: bytes, data: bytes) -> bytes:
            check = zlib.crc32(kind + data)
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(body)) + part(b"IEND", b"")
        at.write_bytes(PNG_START + parts)

    return write


def every(write: Callable[[Path], Any]) -> Callable[[Path], None]:
    """All pictures of the folder written like this."""
    return lambda at: [write(one) for one in sorted(at.parent.iterdir())] and None


PNGS = [f"s{n:03}.png" for n in range(12)]
TIFS = [f"s{n:03}.tif" for n in range(12)]
SLICES = table(
    "slices",
    {
        "sound": ("fine", slices(PNGS)),
        "sound tiff": ("fine", slices(TIFS)),
        "without numbers": ("odd", slices([f"{c}.png" for c in "abcdefghijkl"])),
        "a gap": ("shut", slices(["s0.png", "s1.png", "s5.png", *PNGS[6:]])),
        "a gap of tiff": ("shut", slices([n for n in TIFS if n != "s004.tif"])),
        "one number twice": ("odd", slices(["s1.png", "s01.png", *PNGS[2:]])),
        "one slice": ("odd", slices(PNGS[:1], which=0)),
        "two kinds": ("shut", slices([*PNGS[:6], *TIFS[6:]])),
        "two sizes": ("shut", slices(PNGS, png(grey((96, 97))))),
        "two types": ("shut", slices(PNGS, png(grey((96, 96), np.uint16)))),
        "one in colour": ("shut", slices(PNGS, png(grey((96, 96, 3))))),
        "all in colour": ("shut", slices(PNGS, every(png(grey((96, 96, 3)))))),
        "one palette": ("odd", slices(PNGS, palette_png)),
        "all palette": ("odd", slices(PNGS, every(palette_png))),
        "one bit": ("odd", slices(PNGS, every(png(grey()[0], "1")))),
        "one truncated": ("rotten", slices(PNGS, cut)),
        "one empty": ("shut", slices(PNGS, holds(b""))),
        "one tiff truncated": ("odd", slices(TIFS, cut)),
        "one tiff empty": ("shut", slices(TIFS, holds(b""))),
        "one text": ("shut", slices(PNGS, holds("no picture"))),
        "one a folder": ("shut", slices(PNGS, folder_instead)),
        "one a dangling link": ("shut", slices(PNGS, dangling)),
        "one a fifo": ("shut", slices(PNGS, lambda at: (at.unlink(), os.mkfifo(at)))),
        "one of 0 pixels": ("shut", slices(PNGS, png_of(0, 0))),
        "all of 0 pixels": ("shut", slices(PNGS, every(png_of(0, 96)))),
        "all of 10^12 pixels": ("odd", slices(PNGS, every(png_of(10**6, 10**6)))),
        "all without pixels": ("rotten", slices(PNGS, every(png_of(96, 96)))),
        "text beside": ("fine", slices(PNGS, lambda at: (at.parent / "notes.txt").write_text("!"))),
        "only text": ("shut", file("stack", lambda at: (at.mkdir(), (at / "a.txt").touch()))),
        "an empty folder": ("shut", file("stack", lambda at: at.mkdir())),
    },
)

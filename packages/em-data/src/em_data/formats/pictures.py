"""One picture in a file (PNG, TIFF of one page, JPEG): what its header says, and its pixels in grey.

Colours become their luminance; the numbers of labels are kept, and what cannot hold numbers is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em_data.errors import VolumeReadError
from em_data.formats.optional import import_extra
from em_data.formats.slices import PNG, PNG_START, TIFF, SliceFolder, tiff_header
from em_data.geometry import Int3

JPEG = {".jpg", ".jpeg"}
SUFFIXES = PNG | TIFF | JPEG
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, as Pillow's convert("L")
# https://www.w3.org/TR/png-3/#11IHDR
PNG_COLOURS = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB"}


class Header(NamedTuple):
    """What the first bytes of a picture say."""

    height: int
    width: int
    dtype: str
    is_colour: bool


@dataclass(frozen=True)
class Picture:
    """One picture as an array of one slice; it is decoded whole, whatever is asked of it."""

    path: str
    shape: Int3
    dtype: np.dtype[Any]
    is_label: bool

    @property
    def chunks(self) -> Int3:
        """All of it."""
        return self.shape

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        found = decoded(Path(self.path), self.is_label)
        if found.shape != self.shape[1:]:
            raise VolumeReadError(
                f"its shape is {found.shape}, no longer {self.shape[1:]}; open the folder anew"
            )
        return found[None][index].astype(self.dtype)


def read_header(path: Path, is_label: bool) -> Header:
    """Size and type of a picture from its first bytes."""
    suffix = path.suffix.lower()
    reader: Callable[[Path], tuple[Header, str]] = (
        _png_header if suffix in PNG else _jpeg_header if suffix in JPEG else _tiff_kind
    )
    header, kind = reader(path)
    if min(header.height, header.width) < 1:
        raise ValueError("it has no pixels")
    if not is_label:
        return header._replace(is_colour=header.is_colour or kind == "palette")
    if kind not in ("grey", "palette") or np.dtype(header.dtype).kind not in "ui":
        raise ValueError(f"labels are whole numbers in grey or of a palette, and it is {kind}")
    return header


def _png_header(path: Path) -> tuple[Header, str]:
    import_extra("PIL", "tiff", "PNG files")
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or not start.startswith(PNG_START):
        raise ValueError("it is no PNG file")
    width, height, bits, colour = struct.unpack(">IIBB", start[16:])
    kind = PNG_COLOURS.get(colour, "grey")
    if kind == "grey" and bits in (2, 4):
        kind = f"grey of {bits} bits"  # which Pillow spreads over 0 to 255
    # Pillow gives 16 bits for grey only; colours become 8.
    dtype = "uint16" if bits == 16 and colour == 0 else "uint8"
    return Header(height, width, dtype, colour in (2, 6)), kind


def _jpeg_header(path: Path) -> tuple[Header, str]:
    jpeg = import_extra("PIL.JpegImagePlugin", "tiff", "JPEG files")
    with jpeg.JpegImageFile(path) as picture:
        width, height = picture.size
        return Header(height, width, "uint8", picture.mode != "L"), "JPEG, which changes them"


def _tiff_kind(path: Path) -> tuple[Header, str]:
    shape, dtype = tiff_header(path)
    if dtype.name not in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"):
        raise ValueError(f"it holds {dtype}; wanted up to 32 bits")
    name = "uint8" if dtype.kind == "b" else dtype.name
    height, width, *samples = shape
    return Header(height, width, name, bool(samples)), "RGB" if samples else "grey"


def decoded(path: Path, is_label: bool) -> np.ndarray:
    """A picture as (Y, X), colours as their luminance."""
    suffix = path.suffix.lower()
    if suffix in TIFF:
        shape, dtype = tiff_header(path)
        whole = tuple(slice(0, n) for n in (1, *shape))
        found = SliceFolder((path,), (1, *shape), dtype)[whole][0]
        if found.ndim == 3:
            grey = found[..., :3] @ LUMA if found.shape[2] > 2 else found[..., 0]
            found = (np.rint(grey) if dtype.kind in "iu" else grey).astype(dtype)
        return found.astype(np.uint8) if found.dtype == bool else found
    # Not Image.open, which takes a picture of more than 179 million pixels for an attack.
    if suffix in PNG:
        opened = import_extra("PIL.PngImagePlugin", "tiff", "PNG files").PngImageFile(path)
    else:
        opened = import_extra("PIL.JpegImagePlugin", "tiff", "JPEG files").JpegImageFile(path)
    with opened as picture:
        grey = picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16")
        if not (grey or is_label):
            # Pillow warns of a palette with transparency unless that is asked for.
            picture = (picture.convert("RGBA") if picture.mode == "P" else picture).convert("L")
        found = np.asarray(picture)
    return found.astype(np.uint8 if found.dtype == bool else found.dtype.newbyteorder("="))

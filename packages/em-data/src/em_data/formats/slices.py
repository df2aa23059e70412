"""Volumes as slices: a multi-page TIFF, or a folder of TIFF or PNG files.

Only what a box touches is decoded: whole slices of PNG, single strips or tiles of TIFF. A TIFF that
lies in one piece is mapped. Slices whose numbers leave a gap are refused, unless they are to follow each
other. Voxel sizes are read from ImageJ's and OME's metadata; the resolution
tags of TIFF and PNG alone are for printing, and say nothing of the distance of slices.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from em_data.errors import ExtraMissingError, VolumeFormatError, VolumeReadError
from em_data.formats.axes import UNITS_NM, Wanted, pick_axes, voxel_size
from em_data.formats.grey import grey_table, shown
from em_data.formats.npy import PerProcess, mapped_array
from em_data.formats.optional import import_extra
from em_data.geometry import Float3
from em_data.volume import Array, Volume, as_volume

TIFF, PNG = {".tif", ".tiff"}, {".png"}
MOST_PACKED = 1100  # bytes that one byte of deflate can stand for, https://zlib.net/zlib_tech.html
PNG_START = b"\x89PNG\r\n\x1a\n"


# TIFF --------------------------------------------------------------------------------------------


def open_tiff(path: Path, wanted: Wanted) -> Volume:
    """The first series of a TIFF file."""
    file: PerProcess[Any] = PerProcess(partial(_open_tiff, path))
    try:
        series = _only_series(path, file.get())
        # tifffile calls a plain sequence of pages I or Q: they are slices.
        axes = series.axes.lower().replace("i", "z").replace("q", "z").replace("s", "c")
        if series.shape == series.keyframe.shape:
            axes = f"z{axes}"  # one page is one slice
        size = _imagej_size(str(path), file.get()) or _ome_size(str(path), file.get())
        array = _tiff_array(path, file, series)
    except (VolumeFormatError, ExtraMissingError):
        raise
    except Exception as error:  # tifffile stumbles over damage in many ways
        raise _damaged_tiff(path, error) from error
    volume = as_volume(pick_axes(array, axes, str(path), wanted), str(path), "TIFF")
    return replace(volume, voxel_size_nm=size)


def _open_tiff(path: Path) -> Any:
    return import_extra("tifffile", "tiff", "TIFF files").TiffFile(path)


def _damaged_tiff(path: Path, error: Exception) -> VolumeFormatError:
    return VolumeFormatError(
        f"{path} cannot be read as TIFF ({type(error).__name__}: {error}); it is truncated or damaged: "
        "copy or write it again"
    )


def _only_series(path: Path, file: Any) -> Any:
    if len(file.series) != 1:
        shapes = ", ".join(str(series.shape) for series in file.series[:5])
        raise VolumeFormatError(
            f"{path} holds {len(file.series)} images, of shapes {shapes}; wanted pages of one shape "
            "and type: write each image as a file of its own"
        )
    return file.series[0]


def _tiff_array(path: Path, file: PerProcess[Any], series: Any) -> Array:
    one = series.shape == series.keyframe.shape
    shape = (1, *series.shape) if one else tuple(series.shape)
    if series.dataoffset is not None:
        dtype = series.dtype.newbyteorder(file.get().byteorder)
        mapped = mapped_array(
            partial(np.memmap, path, dtype, "r", offset=series.dataoffset, shape=shape)
        )
        return shown(path, mapped, series.keyframe)
    _check_pages(file.get())
    page = series.keyframe
    if page.imagedepth != 1 or page.axes.strip("YXS") or any(p is None for p in series.pages):
        raise VolumeFormatError(
            f"{path} has pages along {page.axes} or lacks some of them; wanted pages (y, x): "
            "write it anew as one slice per page"
        )
    pages = TiffPages(
        file,
        shape,
        np.dtype(series.dtype),
        (1,) * (len(shape) - len(page.shape)) + _chunk(page),
        None if page.compression == 1 else page.compression.name.lower(),
    )
    return shown(path, pages, page)


def _check_pages(file: Any) -> None:
    """Refuse a file that ends before its last page: tifffile would leave the lost pages out."""
    count = len(file.pages)  # follows the chain of pages to where it ends or breaks
    file.filehandle.seek(file.pages.next_page_offset)
    following = int.from_bytes(
        file.filehandle.read(file.tiff.offsetsize), "little" if file.byteorder == "<" else "big"
    )
    if following:
        raise ValueError(
            f"page {count} should begin at byte {following}, the file has {file.filehandle.size}"
        )


def _chunk(page: Any) -> tuple[int, ...]:
    """Strip or tile along the axes of the page; samples of a pixel lie together or in planes."""
    tile = {"Y": page.chunks[-2], "X": page.chunks[-1], "S": 1}
    if page.axes.endswith("S"):
        tile = {"Y": page.chunks[-3], "X": page.chunks[-2], "S": page.chunks[-1]}
    return tuple(min(tile[axis], n) for axis, n in zip(page.axes, page.shape, strict=True))


@dataclass(frozen=True)
class TiffPages:
    """The pages of a TIFF series, of which only the strips or tiles that are needed are decoded."""

    file: PerProcess[Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    compression: str | None

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        with self.file.lock:  # tifffile reads the file when it is asked for the series
            series = self.file.get().series[0]
        leading = self.shape[: len(self.shape) - len(series.keyframe.shape)]
        pages = np.arange(len(series.pages)).reshape(leading)[index[: len(leading)]]
        parts = [self._page(series, int(i), index[len(leading) :]) for i in pages.ravel()]
        return np.stack(parts).reshape(pages.shape + parts[0].shape)

    def _page(self, series: Any, number: int, index: tuple[int | slice, ...]) -> np.ndarray:
        """`index` of one page, which has the axes YX, YXS or SYX."""
        key, file = series.keyframe, self.file.get().filehandle
        with self.file.lock:
            page = series.pages[number]
            offsets, lengths, tables = page.dataoffsets, page.databytecounts, page.jpegtables
        at = dict(zip(key.axes, index, strict=True))
        ys, xs = at["Y"], at["X"]
        samples = key.shape[key.axes.index("S")] if "S" in key.axes else 1
        out = np.zeros((samples, ys.stop - ys.start, xs.stop - xs.start), self.dtype)
        for segment in self._segments(key, ys, xs):
            with self.file.lock:
                file.seek(offsets[segment])
                data = file.read(lengths[segment])
            if len(data) < lengths[segment]:
                raise VolumeReadError(
                    f"{file.path}: page {number} is truncated, strip or tile {segment} has "
                    f"{len(data)} of {lengths[segment]} bytes; restore the file"
                )
            if not data:
                continue  # a sparse TIFF stores no bytes for what is all zero
            try:
                decoded, (plane, _, y, x, _), shape = key.decode(data, segment, jpegtables=tables)
            except Exception as error:  # every codec has errors of its own
                raise VolumeReadError(
                    f"{file.path}: strip or tile {segment} of page {number} cannot be decoded "
                    f"({type(error).__name__}: {error}); restore the file"
                ) from error
            decoded = np.moveaxis(decoded[0, : shape[1], : shape[2]], -1, 0)  # (S, Y, X)
            y0, y1 = max(y, ys.start), min(y + shape[1], ys.stop)
            x0, x1 = max(x, xs.start), min(x + shape[2], xs.stop)
            out[
                plane : plane + len(decoded),
                y0 - ys.start : y1 - ys.start,
                x0 - xs.start : x1 - xs.start,
            ] = decoded[:, y0 - y : y1 - y, x0 - x : x1 - x]
        samples_yx = out[at["S"]] if "S" in at else out[0]
        if samples_yx.ndim == 2:
            return samples_yx
        return np.moveaxis(samples_yx, 0, key.axes.index("S"))  # to where the page has them

    def _segments(self, key: Any, ys: slice, xs: slice) -> list[int]:
        """Numbers of the strips or tiles that hold a part of the box, of all planes."""
        height, width = key.chunks[-3:-1] if key.axes.endswith("S") else key.chunks[-2:]
        down, across = -(-key.imagelength // height), -(-key.imagewidth // width)
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        return [
            (plane * down + row) * across + column
            for plane, row, column in itertools.product(
                range(planes),
                range(ys.start // height, -(-ys.stop // height)),
                range(xs.start // width, -(-xs.stop // width)),
            )
        ]


def _imagej_size(source: str, file: Any) -> Float3 | None:
    """ImageJ states the distance of slices and the unit in its description, the rest in tags."""
    stated: Mapping[str, Any] = file.imagej_metadata or {}
    tags = file.pages[0].tags
    nm = UNITS_NM.get(str(stated.get("unit")))  # often "pixel", which says nothing
    if nm is None or "spacing" not in stated:
        return None
    # Pixels per unit, as a fraction; 0 where it is not stated.
    y, x = (
        tags[f"{axis}Resolution"].value if f"{axis}Resolution" in tags else (0, 1) for axis in "YX"
    )
    if 0 in (*y, *x):
        return None
    size = (stated["spacing"], y[1] / y[0], x[1] / x[0])
    return voxel_size(source, [float(s) * nm for s in size])


def _ome_size(source: str, file: Any) -> Float3 | None:
    """The physical size of pixels in OME-XML. https://docs.openmicroscopy.org/ome-model"""
    if not file.ome_metadata:
        return None
    root = ElementTree.fromstring(file.ome_metadata)
    pixels = root.find(".//{*}Pixels")
    if pixels is None or not all(f"PhysicalSize{axis}" in pixels.attrib for axis in "ZYX"):
        return None
    units = [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"]  # the model's default
    sizes = [float(pixels.attrib[f"PhysicalSize{axis}"]) for axis in "ZYX"]
    if not set(units) <= set(UNITS_NM):
        return None  # "pixel" and "reference frame" are allowed, too
    return voxel_size(source, [s * UNITS_NM[u] for s, u in zip(sizes, units, strict=True)])


# Folders -----------------------------------------------------------------------------------------


def slice_files(folder: Path) -> list[Path]:
    """The pictures in a folder in natural order: 9 before 10."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in TIFF | PNG]
    files = [path for path in files if not path.name.startswith(".")]
    return sorted(
        files, key=lambda path: [_natural(part) for part in re.split(r"(\d+)", path.name)]
    )


def _natural(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _check_gaps(folder: Path, files: Sequence[Path]) -> None:
    """Refuse slices of which some are missing, by the one number in which their names differ."""
    numbers = _numbers(files)
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    step = math.gcd(*steps)  # every fifth slice may be there on purpose
    gaps = [at for at, wide in enumerate(steps) if wide > step]
    if gaps:
        at = gaps[0]
        missing = sum(steps[gap] // step - 1 for gap in gaps)
        more = f", the first of {len(gaps)} gaps" if len(gaps) > 1 else ""
        raise VolumeFormatError(
            f"{folder}: {missing} of {len(files) + missing} slices are missing, between "
            f"{files[at].name} and {files[at + 1].name}{more}; restore them, or let the slices follow "
            "each other with ?gaps=close after the address, or with --set data.gaps=close"
        )


def _numbers(files: Sequence[Path]) -> list[int]:
    """The rising numbers of slices; none where names differ in more than one number, or in letters."""
    parts = [re.split(r"([0-9]+)", path.name) for path in files]
    differ = [len(set(column)) > 1 for column in itertools.zip_longest(*parts)]
    if differ.count(True) != 1 or differ.index(True) % 2 == 0:
        return []
    return [int(part[differ.index(True)]) for part in parts]


def open_slices(folder: Path, files: Sequence[Path], wanted: Wanted) -> Volume:
    """A folder whose pictures, one per slice, have one shape and type."""
    kinds = {path.suffix.lower() in PNG for path in files}
    if len(kinds) > 1:
        raise VolumeFormatError(
            f"{folder} holds TIFF and PNG files; wanted one kind: move the other out of it"
        )
    for path in files:
        if not path.is_file():
            raise VolumeFormatError(
                f"{path} is a folder, a pipe or a device, or a link to nothing; wanted a picture: take "
                "it out of the folder"
            )
    header = _png_header if kinds == {True} else tiff_header
    shape, dtype = header(files[0])
    for path in files[1:]:
        other = header(path)
        if other != (shape, dtype):
            raise VolumeFormatError(
                f"{path} is {other[0]} {other[1]}, but {files[0].name} is {shape} {dtype}; "
                "wanted slices of one shape and type: repair it or move it out of the folder"
            )
    if wanted.gaps == "refuse":
        _check_gaps(folder, files)
    array = SliceFolder(tuple(files), (len(files), *shape), dtype)
    axes = "zyx" if len(shape) == 2 else "zyxc"
    name = "PNG slices" if kinds == {True} else "TIFF slices"
    return as_volume(pick_axes(array, axes, str(folder), wanted), str(folder), name)


@dataclass(frozen=True)
class SliceFolder:
    """One picture per slice; a file is opened when it is read, and closed again."""

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Pictures are decoded whole, or nearly so."""
        return (1, *self.shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.stack([self._slice(path, index[1:]) for path in self.files[index[0]]])

    def _slice(self, path: Path, index: tuple[slice | int, ...]) -> np.ndarray:
        try:
            if path.suffix.lower() in PNG:
                picture = _read_png(path)
                if picture.shape == self.shape[1:]:
                    return picture[index]
                raise ValueError(f"its shape is {picture.shape}, no longer {self.shape[1:]}")
            file: PerProcess[Any] = PerProcess(partial(_open_tiff, path))
            array = _tiff_array(path, file, _only_series(path, file.get()))
            if array.shape[1:] != self.shape[1:]:
                raise ValueError(f"its shape is {array.shape[1:]}, no longer {self.shape[1:]}")
            return np.asarray(array[slice(0, 1), *index][0])
        except VolumeReadError:
            raise
        except Exception as error:  # every codec has errors of its own
            raise VolumeReadError(
                f"{path} cannot be decoded ({type(error).__name__}: {error}); it is damaged or "
                "truncated, restore it or take it out of the folder and open that anew"
            ) from error


def tiff_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the only page of a file."""
    try:
        with _open_tiff(path) as file:
            page = file.pages[0]
            shape, axes, pages = page.shape, page.axes, len(file.pages)
            dtype = np.dtype(page.dtype)
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise _damaged_tiff(path, error) from error
    if pages != 1 or axes not in ("YX", "YXS"):
        raise VolumeFormatError(
            f"{path} has {pages} pages with the axes {axes}; in a folder wanted one picture per "
            "file: open it by itself"
        )
    return shape, dtype


def _png_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type from the first bytes. https://www.w3.org/TR/png-3/#11IHDR"""
    import_extra("PIL", "tiff", "PNG files")
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or not start.startswith(PNG_START):
        raise VolumeFormatError(f"{path} is not a PNG file; take it out of the folder")
    width, height, bits, colour = struct.unpack(">IIBB", start[16:])
    if not 0 < height * width * bits / 8 <= MOST_PACKED * path.stat().st_size:
        raise VolumeFormatError(
            f"{path} is declared to have {height} × {width} pixels, which its "
            f"{path.stat().st_size} bytes cannot hold; it is damaged: restore it or take it out"
        )
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)  # grey, RGB, palette, with alpha
    dtype = np.dtype(bool if bits == 1 and colour == 0 else np.uint16 if bits == 16 else np.uint8)
    if bits == 16 and samples > 1:
        raise VolumeFormatError(
            f"{path} has {samples} samples of 16 bits per pixel; wanted grey: convert the folder"
        )
    return (height, width) if samples == 1 else (height, width, samples), dtype


def _read_png(path: Path) -> np.ndarray:
    # Not Image.open, which takes a section of more than 179 million pixels for an attack.
    png = import_extra("PIL.PngImagePlugin", "tiff", "PNG files")
    with png.PngImageFile(path) as picture:
        values = np.asarray(picture)
        if picture.mode != "P":
            return values
        table = grey_table(np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3))
        # An index beyond the palette is damage; it is shown as the last entry.
        return values if table is None else np.take(table, values, mode="clip")

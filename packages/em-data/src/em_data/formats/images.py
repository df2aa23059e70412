"""`images:FOLDER`: unrelated pictures of different sizes and kinds, each a volume of one slice.

Collections of micrographs are no stack: their pictures are sampled, not read as one volume. The
folder is listed and the headers are read once; a picture is decoded when a crop of it is asked for.
What is known of the pictures lies in arrays, some 50 bytes each, so that half a million cost no more
than a few volumes do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from em_data.errors import VolumeFormatError, VolumeNotFoundError, VolumeReadError
from em_data.formats.options import check_options, split_options, voxel_nm
from em_data.formats.pictures import SUFFIXES, Picture, read_header
from em_data.geometry import Box, Float3, int3
from em_data.volume import Collection, Nan, Volume

SCHEME = "images:"
NUMBER = re.compile("[0-9]{1,18}")  # in an address
NAMED = 5  # files in a line at most
TOGETHER = 512  # headers that one thread reads before it takes the next ones
THREADS = 8  # that read headers: more than cores, since they wait for the disk


class Images(Collection):
    """The pictures of a folder: a sequence of volumes that are made when they are asked for.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, size in (("a.png", (30, 20)), ("b.jpg", (9, 9))):
    ...         Image.new("L", size).save(f"{folder}/{name}")
    ...     images = open_images(f"images:{folder}")
    ...     len(images), images[0].shape, images.shapes.tolist()
    (2, (1, 20, 30), [[1, 20, 30], [1, 9, 9]])
    """

    def __init__(
        self,
        folder: str,
        names: np.ndarray,
        shapes: np.ndarray,
        dtype: np.dtype[Any],
        *,
        voxel_size_nm: Float3 | None = None,
        skips_unreadable: bool = False,
        is_label: bool = False,
        notes: tuple[str, ...] = (),
        nan: Nan = "keep",
        held: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self.folder = folder
        self.names = names  # (N,) bytes, as the file system has them
        self.shapes = shapes
        self.dtype = dtype
        self.voxel_size_nm = voxel_size_nm
        self.skips_unreadable = skips_unreadable
        self.is_label = is_label
        self.notes = notes  # what was done to some of them, a line each
        self.nan: Nan = nan
        self.held = held  # (1, y, x) of each in memory; None of those that cannot be read

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Volume: ...
    @overload
    def __getitem__(self, number: slice) -> Images: ...
    def __getitem__(self, number: int | slice) -> Volume | Images:
        if isinstance(number, slice):
            return self.take(np.arange(len(self))[number])
        path, shape = self.path(number), int3(self.shapes[number])
        held = None if self.held is None else self.held[number]
        return Volume(
            array=Picture(path, shape, self.dtype, self.is_label) if held is None else held,
            source=path,
            format="image",
            voxel_size_nm=self.voxel_size_nm,
            nan=self.nan,
        )

    def __iter__(self) -> Iterator[Volume]:
        return (self[number] for number in range(len(self)))

    def __str__(self) -> str:
        """How many there are, how large, and what was done to some of them."""
        low, high = self.shapes[:, 1:].min(0), self.shapes[:, 1:].max(0)
        sizes = " to ".join(f"{y} × {x}" for y, x in (low, high))
        return "; ".join((f"{self.folder}: {len(self)} images, {sizes} {self.dtype}", *self.notes))

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels when decoded."""
        return int(self.shapes.astype(np.int64).prod(1).sum()) * self.dtype.itemsize

    def path(self, number: int) -> str:
        """The file of a picture."""
        return f"{self.folder}/{os.fsdecode(self.names[number])}"

    def name(self, number: int) -> str:
        """The name of a picture without its ending."""
        return os.fsdecode(self.names[number].rpartition(b".")[0])

    def take(self, numbers: np.ndarray) -> Images:
        """Some of the pictures, for instance those that are held out."""
        held = None if self.held is None else [self.held[number] for number in numbers]
        return self._with(names=self.names[numbers], shapes=self.shapes[numbers], held=held)

    def treating(self, nan: Nan) -> Images:
        """The same pictures, with what is done about pixels that are no numbers."""
        return self._with(nan=nan)

    def held_in_memory(self) -> Images:
        """The same pictures with all of their pixels read once, for collections that fit.

        Those that cannot be read stay as they are where the address says to skip them.
        """

        def read(number: int) -> np.ndarray | None:
            try:
                return self[number].read(Box((0, 0, 0), int3(self.shapes[number])))
            except VolumeReadError:
                if self.skips_unreadable:
                    return None
                raise

        with ThreadPoolExecutor(THREADS) as pool:
            return self._with(held=list(pool.map(read, range(len(self)))))

    def _with(self, **changes: Any) -> Images:
        return Images(**(vars(self) | changes))


def open_images(address: str) -> Images:
    """The pictures at `images:FOLDER`, in the order of their names.

    PNG, TIFF of one page and JPEG, grey or in colour, of 8 or 16 bits or float32. Those whose header
    cannot be read are refused by name, or left out with `?unreadable=skip`; with `?least_px=N` those
    that are smaller than N pixels along a side are left out; `?take=A:B` takes those from number A to
    B − 1 of what remains, counted from 0; `?voxel_nm=Z,Y,X` is the voxel size of all of them.
    `Images.notes` says what was left out and what became grey.
    """
    folder, options = find_folder(address)
    if "match" in options:
        raise VolumeFormatError(
            f"{address}: match says where the labels of images are; leave it out for the images"
        )
    skip, least = options.get("unreadable"), options.get("least_px", "1")
    if skip not in (None, "skip"):
        raise VolumeFormatError(f"{address}: unreadable is {skip!r}; wanted skip, or nothing")
    if not (NUMBER.fullmatch(least) and int(least)):
        raise VolumeFormatError(f"{address}: least_px is {least!r}; wanted a number of pixels ≥ 1")
    found, unreadable = read_headers(address, folder, list_names(address, folder), skip == "skip")
    notes = []
    if unreadable:
        notes.append(f"{len(unreadable)} cannot be read and are left out: {some(unreadable)}")
    small = found.shapes[:, 1:].min(1) < int(least)
    if small.any():
        notes.append(f"{small.sum()} are smaller than {least} px along a side and are left out")
        if small.all():
            raise VolumeFormatError(
                f"{address}: all of {len(small)} images are smaller; lower least_px"
            )
    colour, kinds = found.colour[~small], kinds_of(found.kinds[~small])
    if colour.any():
        notes.append(f"{colour.sum()} are in colour and are taken as their luminance")
    if len(kinds) > 1:
        notes.append(f"they hold {' and '.join(kinds)}, and each keeps the values that it has")
    images = Images(
        folder,
        found.names[~small],
        found.shapes[~small],
        np.result_type(*kinds),
        voxel_size_nm=voxel_nm(address, options),
        skips_unreadable=skip == "skip",
        notes=tuple(notes),
    )
    return (
        images.take(_taken(address, options["take"], len(images))) if "take" in options else images
    )


def _taken(address: str, text: str, count: int) -> np.ndarray:
    """The numbers that `take` names."""
    first, colon, end = text.partition(":")
    wanted = colon and NUMBER.fullmatch(first) and NUMBER.fullmatch(end)
    if not (wanted and int(first) < int(end)):
        raise VolumeFormatError(f"{address}: take is {text!r}; wanted a range A:B such as 0:100")
    if int(end) > count:
        raise VolumeFormatError(
            f"{address}: take is {text}, and there are {count} images; end at {count} at the latest"
        )
    return np.arange(int(first), int(end))


# Listing -----------------------------------------------------------------------------------------


def find_folder(address: str) -> tuple[str, dict[str, str]]:
    """The folder of a collection, and the options of its address."""
    if not address.startswith(SCHEME):
        raise VolumeFormatError(f"{address} is no collection of images; wanted {SCHEME}FOLDER")
    folder, options = split_options(address.removeprefix(SCHEME))
    check_options(address, options, "images")
    if "channel" in options:
        raise VolumeFormatError(f"{address}: images are read as grey; leave channel out")
    if not Path(folder).is_dir():
        raise VolumeNotFoundError(
            f"no folder of images at {folder or address!r}; check the path (the current folder is "
            f"{Path.cwd()})"
        )
    return folder, options


def list_names(address: str, folder: str) -> np.ndarray:
    """The names of the pictures in order: (N,) bytes."""
    known = tuple(os.fsencode(suffix) for suffix in SUFFIXES)
    with os.scandir(os.fsencode(folder)) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(known)]
    names = sorted(name for name in names if not name.startswith(b"."))
    if not names:
        raise VolumeFormatError(
            f"{address} has no images in it; wanted PNG, TIFF or JPEG files right in this folder"
        )
    return np.array(names)


class Headers(NamedTuple):
    """What is known of pictures, an element each."""

    names: np.ndarray  # bytes
    shapes: np.ndarray  # (N, 3)
    kinds: np.ndarray  # names of their types, bytes
    colour: np.ndarray  # bool


def read_headers(
    address: str, folder: str, names: np.ndarray, skip: bool, *, is_label: bool = False
) -> tuple[Headers, list[str]]:
    """The headers of pictures, and those that cannot be read, which are refused unless skipped."""
    shapes = np.ones((len(names), 3), np.int32)
    kinds, colour = np.full(len(names), b"", "S8"), np.zeros(len(names), bool)
    unreadable: dict[int, str] = {}

    def read(first: int) -> None:
        for number in range(first, min(first + TOGETHER, len(names))):
            name = os.fsdecode(names[number])
            try:
                header = read_header(Path(folder, name), is_label)
            except ImportError:
                raise
            except Exception as error:  # every format has errors of its own
                unreadable[number] = f"{name} ({str(error) or type(error).__name__})"
                continue
            shapes[number, 1:] = header.height, header.width
            kinds[number], colour[number] = header.dtype, header.is_colour

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(0, len(names), TOGETHER)))
    lost = [unreadable[number] for number in sorted(unreadable)]
    if lost and (not skip or len(lost) == len(names)):
        remedy = "repair them" if skip or is_label else "repair them, or say ?unreadable=skip"
        raise VolumeFormatError(
            f"{address}: {len(lost)} of {len(names)} images cannot be read: {some(lost)}; {remedy}"
        )
    good = np.ones(len(names), bool)
    good[list(unreadable)] = False
    return Headers(names[good], shapes[good], kinds[good], colour[good]), lost


def kinds_of(kinds: np.ndarray) -> list[str]:
    """The different types among pictures."""
    return [kind.decode() for kind in np.unique(kinds)]


def some(names: Sequence[str]) -> str:
    """The first of many files, in a line."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

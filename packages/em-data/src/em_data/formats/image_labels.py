"""Labels of a collection of images, matched by the names of the files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.formats.images import Images, find_folder, kinds_of, list_names, read_headers, some
from em_data.labels import Labels, PlacedVolume, check_types


@dataclass(frozen=True)
class ImageLabels(Sequence[Labels]):
    """The labels of each picture, made when they are asked for."""

    names: tuple[str, ...]
    channels: tuple[Images, ...]  # the label pictures of each name, in the order of the images
    ignore: int | None = None  # value of pixels that are not labelled

    def __len__(self) -> int:
        return len(self.channels[0])

    @overload
    def __getitem__(self, number: int) -> Labels: ...
    @overload
    def __getitem__(self, number: slice) -> ImageLabels: ...
    def __getitem__(self, number: int | slice) -> Labels | ImageLabels:
        if isinstance(number, slice):
            return self.take(np.arange(len(self))[number])
        volumes = [channel[number] for channel in self.channels]
        return Labels(
            self.names,
            tuple(PlacedVolume(volume, volume.shape, ignore=self.ignore) for volume in volumes),
        )

    def take(self, numbers: np.ndarray) -> ImageLabels:
        """Those of some of the images, as `Images.take`."""
        return replace(self, channels=tuple(channel.take(numbers) for channel in self.channels))

    def held_in_memory(self) -> ImageLabels:
        """The same labels with all of their pixels read once."""
        return replace(self, channels=tuple(one.held_in_memory() for one in self.channels))

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels when decoded."""
        return sum(channel.nbytes for channel in self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds the values of all channels."""
        return np.result_type(*(channel.dtype for channel in self.channels))


def match_labels(
    images: Images, addresses: Mapping[str, str], *, ignore: int | None = None
) -> ImageLabels:
    """Labels of images by name, each from a folder whose files are called like the images.

    `mito=images:labels?match={name}_mask.png`: {name} is the name of an image without its ending;
    without `match` a label is called like its image, with any ending. Every image has its label. At
    pixels of the value `ignore` no crop is aimed.
    """
    if not addresses:
        raise VolumeFormatError(f"{images.folder} was given no labels; name at least one folder")
    stems = [os.fsdecode(_stem(name)) for name in images.names]
    channels = []
    for name, address in addresses.items():
        folder, options = find_folder(address)
        for option in {"unreadable", "least_px", "voxel_nm", "take"} & set(options):
            raise VolumeFormatError(f"{address}: {option} is an option of the images; leave it out")
        pattern = options.get("match", "{name}")
        if "{name}" not in pattern:
            raise VolumeFormatError(
                f"{address}: match is {pattern!r}; wanted a pattern with {{name}}"
            )
        wanted = [pattern.replace("{name}", stem) for stem in stems]
        names = _matched(
            name, address, images, list_names(address, folder), wanted, "match" in options
        )
        found, _ = read_headers(address, folder, names, False, is_label=True)
        differ = np.flatnonzero((found.shapes != images.shapes).any(1))
        if len(differ):
            one = int(differ[0])
            y, x = found.shapes[one][1:]
            have_y, have_x = images.shapes[one][1:]
            raise VolumeFormatError(
                f"labels {name!r} of {images.path(one)} are {y} × {x} pixels, and the image is "
                f"{have_y} × {have_x} ({len(differ)} differ so); give the labels of these images"
            )
        kinds = kinds_of(found.kinds)
        channels.append(
            Images(
                *(folder, found.names, found.shapes, np.result_type(*kinds)),
                voxel_size_nm=images.voxel_size_nm,
                is_label=True,
            )
        )
    check_types({f"labels {n!r}": c.dtype for n, c in zip(addresses, channels, strict=True)})
    return ImageLabels(tuple(addresses), tuple(channels), ignore)


def _matched(
    name: str, address: str, images: Images, there: np.ndarray, wanted: list[str], exact: bool
) -> np.ndarray:
    """The file of each image's label, or a line that names those without."""
    keys = there if exact else np.array([_stem(one) for one in there])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        both = some([os.fsdecode(there[order[i]]) for i in (twice[0], twice[0] + 1)])
        raise VolumeFormatError(
            f"{address}: {both} are labels of one image; say which with ?match="
        )
    asked = np.array([os.fsencode(one) for one in wanted])
    at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    missing = np.flatnonzero(keys[at] != asked)
    if len(missing):
        lacking = some([os.fsdecode(images.names[i]) for i in missing])
        raise VolumeFormatError(
            f"labels {name!r}: {address} has none for {len(missing)} of {len(images)} images "
            f"({lacking}); wanted {wanted[missing[0]]!r} for the first: say how they are called with "
            "?match={name}_mask.png, or leave those images out"
        )
    return there[order[at]]


def _stem(name: bytes) -> bytes:
    return name.rpartition(b".")[0]

"""The grammar of labels, the same for every command, and which volumes they name.

    ADDRESS                 a class: where the volume is not 0
    NAME=ADDRESS            the same under another name
    NAME=ADDRESS@VALUE      a class: where the volume has this value
    borders:ADDRESS         a volume of instances: the class is where two of them meet
    classes:ADDRESS         a map of classes: every value above 0 is one

Without a name, a class is called like its volume, with _ for what a name cannot hold. An address may
be the name of a label image that is stored beside the raw volume: that one counts, and not a file of
the same name in the current folder, which is ./NAME.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from em_data import Box, Volume, open_volume
from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.formats.images import SCHEME as IMAGES
from em_data.formats.legend import read_legend
from em_data.formats.options import split_options
from em_data.geometry import Float3

BORDERS, MAP = "borders", "classes"  # what may stand before an address, with a colon

SPECIFICATION = re.compile(
    r"(?:(?P<name>[\w .-]+)=)?(?:(?P<kind>borders|classes):)?"
    r"(?P<address>[^@]+(?:@[^0-9@][^@]*)*)(?:@(?P<value>[0-9]+))?"
)

EMPTY = re.compile(r"(?:[\w .-]+=)?(?:(?:borders|classes):)?(?:@[0-9]*)?")  # without an address

SUFFIXES = (".zarr", ".n5", ".npy", ".tif", ".tiff", ".h5")

WANTED = "NAME=ADDRESS, NAME=ADDRESS@VALUE, borders:ADDRESS or classes:ADDRESS"


class Specification(NamedTuple):
    """One --labels option."""

    address: str
    name: str | None = None
    value: int | None = None
    kind: str = ""  # BORDERS, MAP or neither

    @property
    def called(self) -> str:
        """The name of the class; maps, which name theirs themselves, are all called alike."""
        if self.name is not None:
            return self.name
        if self.kind:
            return "border" if self.kind == BORDERS else MAP
        place, _ = split_options(self.address.removeprefix(IMAGES))
        path = PurePath(place.rstrip("/").rpartition("::")[2])
        stem = path.stem if path.suffix in SUFFIXES else path.name
        stem = re.sub(r"[^\w .-]", "_", stem)
        return stem if self.value is None else f"{stem} {self.value}"

    @property
    def bare(self) -> bool:
        """Whether it is an address and nothing else."""
        return self.name is None and self.value is None and not self.kind

    @property
    def typed(self) -> str:
        """The option as it is written."""
        return self.address if self.bare else self.at(self.address)

    def at(self, address: str) -> str:
        """The option that says the same of another address."""
        name = self.name if self.kind else self.called
        value = "" if self.value is None else f"@{self.value}"
        return (
            (f"{name}=" if name else "") + (f"{self.kind}:" if self.kind else "") + address + value
        )

    def told(self, beside: Volume) -> str:
        """What it names, in words."""
        place, other = self.address, ""
        if self.address in beside.label_names:
            place = f"the label image {self.address} stored with {beside.source}"
            if Path(self.address).exists():
                other = f"; the file of this name in the current folder is ./{self.address}"
        if self.kind == MAP:
            return f"{self.called}: every value above 0 of {place}{other}"
        if self.kind == BORDERS:
            return f"{self.called}: where instances of {place} meet{other}"
        wanted = "not 0" if self.value is None else self.value
        return f"{self.called}: where {place} is {wanted}{other}"


def parse(text: str) -> Specification:
    """One label option.

    >>> parse("mitochondria=labels.zarr/mito@2")
    Specification(address='labels.zarr/mito', name='mitochondria', value=2, kind='')
    >>> parse("labels.zarr/mito").called
    'mito'
    """
    match = SPECIFICATION.fullmatch(text)
    if match is None or EMPTY.fullmatch(text):
        raise ValueError(f"--labels: labels are {text!r}; wanted {WANTED}")
    name, kind, value = match["name"], match["kind"] or "", match["value"]
    if kind and value:
        raise ValueError(f"labels are {text!r}; {kind}: takes all values, leave @{value} out")
    if kind == MAP and name:
        raise ValueError(f"labels are {text!r}; a map names its classes itself, leave {name}= out")
    return Specification(match["address"], name, int(value) if value else None, kind)


def check_alone(options: Sequence[Specification], *, but: str = "") -> None:
    """Refuse borders: or classes: beside other labels; one of them may be taken out of it."""
    kind = next((one.kind for one in options if one.kind not in ("", but)), "")
    if kind and len(options) > 1:
        raise ValueError(
            f"{kind}: takes one volume, with all classes; got {len(options)} labels: give it alone"
        )


def is_stored(address: str, volumes: Sequence[str]) -> bool:
    """Whether an address is the name of a label image that is stored beside one of the volumes."""
    single = (volume for volume in volumes if not volume.startswith(IMAGES))
    return any(address in open_volume(volume).label_names for volume in single)


def open_label(option: Specification, beside: Volume, *, at_nm: Float3 | None = None) -> Volume:
    """The volume of a label option, at its level nearest to `at_nm`: integers or bool."""
    if option.address in beside.label_names:
        volume = beside.labels(option.address)
    else:
        try:
            volume = open_volume(option.address, at_nm=at_nm)
        except VolumeNotFoundError as error:
            known = ", ".join(beside.label_names) or "none"
            raise VolumeNotFoundError(
                f"--labels {option.typed}: {error}; label images stored with {beside.source}: {known}"
            ) from None
        except VolumeFormatError as error:
            raise VolumeFormatError(f"--labels {option.typed}: {error}") from None
    if volume.dtype.kind not in "bui":
        raise ValueError(f"{volume.source} holds {volume.dtype}; wanted integer labels")
    return volume


def names_of(volume: Volume, ignore: int | None = None) -> tuple[str, ...]:
    """Names of the values 0, 1, … of a map of classes: its own, or `class 1` and so on."""
    count, known = 1 + _largest(volume, ignore), read_legend(volume.source).classes
    return tuple(known.get(i, f"class {i}") for i in range(count))


def _largest(volume: Volume, ignore: int | None) -> int:
    value = 0
    for z in range(volume.shape[0]):
        plane = volume.read(Box((z, 0, 0), (1, *volume.shape[1:])))
        counted = plane if ignore is None else plane[plane != ignore]
        value = max(value, int(np.max(counted, initial=0)))
    if value > 255:
        raise ValueError(
            f"{volume.source} holds labels up to {value}; wanted at most 256 classes: for instances, "
            f"write {BORDERS}: before it"
        )
    return value

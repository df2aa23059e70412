"""Labels for segmentation: which volumes hold them, and what of them is a class.

    NAME=ADDRESS            a class of its own: where the volume is not 0
    NAME=ADDRESS@VALUE      one value of a volume of classes

Without a name, a class is called like its volume, with _ for what a name cannot hold. An address may
be the name of a label image that is stored beside the raw volume.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import torch
from em_data import Box, Labels, Volume, open_volume, place_labels
from em_data.geometry import Float3, disjoint
from torch import Tensor

SPECIFICATION = re.compile(
    r"(?:(?P<name>[\w .-]+)=)?(?P<address>[^@]+(?:@\D[^@]*)*)(?:@(?P<value>\d+))?"
)

SUFFIXES = (".zarr", ".n5", ".npy", ".tif", ".tiff", ".h5")


class Specification(NamedTuple):
    """One --labels option."""

    name: str
    address: str
    value: int | None


@dataclass(frozen=True, kw_only=True)
class Classes:
    """What the channels of label volumes mean."""

    names: tuple[str, ...]
    values: tuple[int, ...] = ()
    """The value of each class in the only channel; without them, each class has a channel."""
    ignore: int | None = None
    """Pixels of this value are not labelled."""
    exclusive: bool = False
    """Whether a pixel has one class: where several are labelled, the last of them."""

    def target(self, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Truth and where it is known, as bool: two (B, V, …) as stored -> (B, C, …) each."""
        if self.ignore is not None:
            valid = valid & (labels != self.ignore)
        if self.values:
            of = torch.tensor(self.values, dtype=labels.dtype, device=labels.device)
            truth = labels == of.view(1, -1, *[1] * (labels.dim() - 2))
            valid = valid.expand_as(truth)
        else:
            truth = labels != 0
        if self.exclusive:
            after = truth.flip(1).cumsum(1).flip(1)  # how many from each class on
            truth = truth & (after == 1)
            valid = valid.all(1, keepdim=True).expand_as(truth)
        return truth & valid, valid


def parse(text: str) -> Specification:
    """One label option.

    >>> parse("mitochondria=labels.zarr/mito@2")
    Specification(name='mitochondria', address='labels.zarr/mito', value=2)
    >>> parse("labels.zarr/mito").name
    'mito'
    """
    match = SPECIFICATION.fullmatch(text)
    if match is None:
        raise ValueError(f"labels are {text!r}; wanted NAME=ADDRESS or NAME=ADDRESS@VALUE")
    name, address, value = match["name"], match["address"], match["value"]
    path = PurePath(address.rstrip("/").rpartition("::")[2])
    stem = path.stem if path.suffix in SUFFIXES else path.name
    stem = re.sub(r"[^\w .-]", "_", stem)
    named = name or (stem if value is None else f"{stem} {value}")
    return Specification(named, address, None if value is None else int(value))


def open_labels(
    raw: Sequence[Volume],
    options: Sequence[str],
    *,
    at_nm: Float3 | None = None,
    ignore: int | None = None,
    exclusive: bool = False,
) -> tuple[list[Labels], Classes]:
    """The labels of each raw volume, and what they mean.

    The i-th option of a name belongs to the i-th volume; a single one that names a label image stored
    beside the volumes belongs to all.
    """
    given: dict[str, list[Specification]] = {}
    for option in options:
        given.setdefault(parse(option).name, []).append(parse(option))
    if not given:
        raise ValueError("data.labels is empty; name the labels of each volume, with --labels")
    for name, own in given.items():
        if len(own) == 1 < len(raw) and all(own[0].address in v.label_names for v in raw):
            given[name] = own * len(raw)
        elif len(own) != len(raw):
            raise ValueError(
                f"labels {name!r} are given {len(own)} times for {len(raw)} volumes; give --labels "
                f"{name}=ADDRESS once for each --data, in the same order"
            )
    names, values = tuple(given), [own[0].value for own in given.values()]
    by_value = [value for value in values if value is not None]
    if any({one.value for one in own} != {own[0].value} for own in given.values()):
        raise ValueError("a class has one value in all volumes; its labels name several")
    opened = []
    for number, volume in enumerate(raw):
        addresses = {name: own[number].address for name, own in given.items()}
        if by_value and (len(by_value) < len(values) or len(set(addresses.values())) > 1):
            raise ValueError(
                "classes are either values of one volume (NAME=ADDRESS@VALUE, the same address) or "
                f"have a volume each; {volume.source} is given both: {', '.join(options)}"
            )
        wanted = {"classes": next(iter(addresses.values()))} if by_value else addresses
        opened.append(place_labels(volume, _open(volume, wanted, at_nm), ignore=ignore))
    return opened, Classes(names=names, values=tuple(by_value), ignore=ignore, exclusive=exclusive)


def balance(classes: Classes, share: float) -> dict[str, float]:
    """The same part of `share` for every class, as samplers take it."""
    keys = list(classes.names)
    if classes.values:
        keys = [f"{name}@{value}" for name, value in zip(keys, classes.values, strict=True)]
    return {key: share / len(keys) for key in keys}


def labelled(boxes: Sequence[Box]) -> list[Box]:
    """The slices of boxes, each pixel once, in the order of z."""
    found = [
        Box((z, *box.origin_vx[1:]), (1, *box.size_vx[1:]))
        for box in disjoint(boxes)
        for z in range(box.origin_vx[0], box.origin_vx[0] + box.size_vx[0])
    ]
    return sorted(found)


def truth_of(labels: Labels, classes: Classes, box: Box) -> tuple[Tensor, Tensor]:
    """Truth and where it is known in a box of the raw volume: (C, Z, Y, X) bool each."""
    stored = torch.from_numpy(labels.read(box))[None]
    known = torch.from_numpy(labels.valid(box))[None]
    truth, valid = classes.target(stored, known)
    return truth[0], valid[0]


def _open(raw: Volume, addresses: Mapping[str, str], at_nm: Float3 | None) -> dict[str, Volume]:
    return {
        name: raw.labels(address)
        if address in raw.label_names
        else open_volume(address, at_nm=at_nm)
        for name, address in addresses.items()
    }

"""Labels for segmentation: what of the volumes is a class, and where that is known.

How `--labels` are written stands in `em_train.judge.labels`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from em_data import Box, ImageLabels, Images, Labels, Volume, match_labels, place_labels
from em_data.formats.images import SCHEME
from em_data.geometry import Float3, disjoint
from torch import Tensor

from em_train.engine.progress import say
from em_train.judge.labels import (
    BORDERS,
    MAP,
    Specification,
    check_alone,
    names_of,
    open_label,
    parse,
)


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
    borders: tuple[str, ...] = ()
    """Classes that are where instances of their channel meet, within slices."""

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
            for channel in map(self.names.index, self.borders):
                truth[:, channel] = meeting(labels[:, channel])
        if self.exclusive:
            after = truth.flip(1).cumsum(1).flip(1)  # how many from each class on
            truth = truth & (after == 1)
            valid = valid.all(1, keepdim=True).expand_as(truth)
        return truth & valid, valid


def open_labels(
    raw: Sequence[Volume],
    options: Sequence[str],
    *,
    at_nm: Float3 | None = None,
    ignore: int | None = None,
    exclusive: bool = False,
    names: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[list[Labels], Classes]:
    """The labels of each raw volume, and what they mean.

    The i-th option of a name belongs to the i-th volume; a single one that names a label image stored
    beside the volumes belongs to all. Of `names`, which a run knows, a map may hold the first alone.
    With `quiet` nobody is told what was opened.
    """
    given = grouped(options)
    for name, own in given.items():
        if len(own) == 1 < len(raw) and all(own[0].address in v.label_names for v in raw):
            given[name] = own * len(raw)
        elif len(own) != len(raw):
            raise ValueError(
                f"labels {name!r} are given {len(own)} times for {len(raw)} volumes; give --labels "
                f"{own[0].at('ADDRESS')} once for each --data, in the same order"
            )
        if any(one[2:] != own[0][2:] for one in own):
            raise ValueError("a class has one value in all volumes; its labels name several")
    firsts = [own[0] for own in given.values()]
    check_alone(firsts, but=BORDERS)
    by_value = [one.value for one in firsts if one.value is not None]
    opened: list[dict[str, Volume]] = []
    for number, volume in enumerate(raw):
        wanted = {name: own[number] for name, own in given.items()}
        if by_value:
            check_values([*wanted.values()], volume.source)
            wanted = {MAP: next(iter(wanted.values()))}
        opened.append({n: open_label(one, volume, at_nm=at_nm) for n, one in wanted.items()})
        for own in () if quiet else given.values():
            say(f"labels  {own[number].told(volume)}")
    labels = [place_labels(r, own, ignore=ignore) for r, own in zip(raw, opened, strict=True)]
    maps = (own[MAP] for own in opened)
    return labels, classes_of(firsts, maps, ignore=ignore, exclusive=exclusive, names=names)


def open_image_labels(
    images: Images,
    options: Sequence[str],
    *,
    ignore: int | None = None,
    exclusive: bool = False,
    names: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[ImageLabels, Classes]:
    """The labels of a collection of images, each option once, as `open_labels`."""
    given = grouped(options)
    for name, own in given.items():
        if len(own) > 1:
            raise ValueError(
                f"labels {name!r} are given {len(own)} times for one collection of images; give them "
                "once"
            )
        if not own[0].address.startswith(SCHEME):
            raise ValueError(
                f"labels {name!r} are {own[0].address}, and those of the collection {images.folder} are "
                f"images too; give --labels {own[0].at(SCHEME + 'FOLDER')}"
            )
    firsts = [own[0] for own in given.values()]
    check_alone(firsts, but=BORDERS)
    wanted = {one.called: one.address for one in firsts}
    if any(one.value is not None for one in firsts):
        check_values(firsts, images.folder)
        wanted = {MAP: firsts[0].address}
    labels = match_labels(images, wanted, ignore=ignore)
    for one in () if quiet else firsts:
        say(f"labels  {one.told(images[0])}")
    maps = labels.channels[0]
    return labels, classes_of(firsts, maps, ignore=ignore, exclusive=exclusive, names=names)


def grouped(options: Sequence[str]) -> dict[str, list[Specification]]:
    """The options of each name."""
    given: dict[str, list[Specification]] = {}
    for option in map(parse, options):
        given.setdefault(option.called, []).append(option)
    if not given:
        raise ValueError("data.labels is empty; name the labels of each volume, with --labels")
    return given


def check_values(options: Sequence[Specification], source: str) -> None:
    """Refuse classes that are values of different volumes, or values beside whole volumes."""
    if any(one.value is None for one in options) or len({one.address for one in options}) > 1:
        given = ", ".join(one.at(one.address) for one in options)
        raise ValueError(
            "classes are either values of one volume (NAME=ADDRESS@VALUE, the same address) or "
            f"have a volume each; {source} is given both: {given}"
        )


def classes_of(
    firsts: Sequence[Specification],
    maps: Iterable[Volume],
    *,
    ignore: int | None,
    exclusive: bool,
    names: Sequence[str],
) -> Classes:
    """What the channels mean: of a map, whose volumes are read, its values; else what was named."""
    called = tuple(one.called for one in firsts)
    by_value = [one.value for one in firsts if one.value is not None]
    if firsts[0].kind == MAP:
        called = max((names_of(volume, ignore) for volume in maps), key=len)[1:]
        if called == tuple(names[: len(called)]):
            called = tuple(names)
        by_value = [*range(1, 1 + len(called))]
    return Classes(
        names=called,
        values=tuple(by_value),
        ignore=ignore,
        exclusive=exclusive,
        borders=tuple(one.called for one in firsts if one.kind == BORDERS),
    )


def meeting(instances: Tensor) -> Tensor:
    """Whether one of the four neighbours in its slice belongs to another instance: (…, Y, X) -> bool."""
    border = torch.zeros_like(instances, dtype=torch.bool)
    for axis in (-2, -1):
        n = instances.shape[axis] - 1
        differ = instances.narrow(axis, 1, n) != instances.narrow(axis, 0, n)
        for first in (0, 1):
            border.narrow(axis, first, n).logical_or_(differ)
    return border


def balance(classes: Classes, share: float) -> dict[str, float]:
    """The same part of `share` for every class, as samplers take it; borders are met anyway."""
    keys = [name for name in classes.names if name not in classes.borders]
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

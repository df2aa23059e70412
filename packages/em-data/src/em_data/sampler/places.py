"""Places: where a crop may begin, as disjoint boxes of origins, and how one of them is drawn.

A region says where crops may lie; for a crop of one shape that is a set of origins, and a set of
disjoint boxes of origins can be counted, drawn from and cut down to a block without listing it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from em_data.errors import BoxError
from em_data.geometry import Box, Int3, disjoint, end_of, int3, intersect, shifted, span


class Region(NamedTuple):
    """Where the crops of one volume may lie."""

    inside: tuple[Box, ...]
    """A crop lies wholly inside one of these boxes; they may overlap."""
    centres: tuple[Box, ...] | None = None
    """Its centre voxel lies in one of these; None: anywhere."""


def whole(shape: Int3) -> Region:
    """The region of all voxels of a volume."""
    return Region((Box((0, 0, 0), shape),))


def centred(region: Region, boxes: Sequence[Box]) -> Region:
    """The part of a region whose crops have their centres in `boxes` as well."""
    if region.centres is None:
        return Region(region.inside, tuple(boxes))
    pairs = itertools.product(region.centres, boxes)
    return Region(region.inside, tuple(box for a, b in pairs if (box := intersect(a, b))))


def origins(
    shapes: Sequence[Int3] | np.ndarray,
    crop_vx: Int3,
    centre_vx: Int3,
    regions: Sequence[Region] | None = None,
    sources: Sequence[str] = (),
) -> Sequence[Sequence[Box]]:
    """Disjoint boxes of the origins of all allowed crops of each volume; refuses what does not fit.

    Shapes as an array (V, 3), as collections of images have them, are not made into lists. A volume
    that is refused is named by its source, where these are given.

    >>> origins([(50, 1024, 1024)], (64, 256, 256), (32, 128, 128))
    Traceback (most recent call last):
    ...
    em_data.errors.BoxError: crop (64, 256, 256) exceeds volume (50, 1024, 1024) on z; take a \
smaller crop or fewer slices
    """
    if not len(shapes):
        raise BoxError("no volume to sample from; give at least one")
    if regions is not None and len(regions) != len(shapes):
        raise BoxError(f"{len(regions)} regions for {len(shapes)} volumes; give one for each")
    if isinstance(shapes, np.ndarray) and regions is None:
        return Everywhere.of(shapes, crop_vx)
    found = []
    for number, shape in enumerate(map(int3, shapes), 1):
        which = f" (volume {number} of {len(shapes)})" if len(shapes) > 1 else ""
        which = f" ({sources[number - 1]})" if sources else which
        for axis, size, length in zip("zyx", crop_vx, shape, strict=True):
            if size > length:
                raise BoxError(
                    f"crop {crop_vx} exceeds volume {tuple(shape)} on {axis}{which}; "
                    "take a smaller crop or fewer slices"
                )
        region = whole(shape) if regions is None else regions[number - 1]
        boxes = _origins(region, crop_vx, centre_vx)
        if any(low < 0 for box in region.inside for low in box.origin_vx) or any(
            end > n for box in region.inside for end, n in zip(end_of(box), shape, strict=True)
        ):
            raise BoxError(
                f"region {_words(region.inside)} leaves the volume {tuple(shape)}{which}; "
                "give boxes inside it"
            )
        if not region.inside:
            raise BoxError(
                f"what is held out of volume {tuple(shape)}{which} leaves no room for a crop of "
                f"{crop_vx}; take a smaller crop, hold out less, or a smaller gap"
            )
        if not boxes:
            centres = f" with its centre in {_words(region.centres)}" if region.centres else ""
            raise BoxError(
                f"crop {crop_vx} fits nowhere into {_words(region.inside)}{centres}{which}; take a "
                "smaller crop, hold out less, or a smaller gap"
            )
        found.append(boxes)
    return found


def _origins(region: Region, crop_vx: Int3, centre_vx: Int3) -> list[Box]:
    room = [
        span(box.origin_vx, [e - s + 1 for e, s in zip(end_of(box), crop_vx, strict=True)])
        for box in region.inside
        if all(n >= s for n, s in zip(box.size_vx, crop_vx, strict=True))
    ]
    if region.centres is not None:
        centres = [shifted(box, centre_vx, -1) for box in region.centres]
        pairs = itertools.product(room, centres)
        room = [box for a, b in pairs if (box := intersect(a, b))]
    return disjoint(room)


def _words(boxes: Sequence[Box]) -> str:
    """`z 0:40, y 0:512, x 0:512`, for messages."""
    names = [
        ", ".join(f"{a} {o}:{e}" for a, o, e in zip("zyx", box.origin_vx, end_of(box), strict=True))
        for box in boxes[:4]
    ]
    return "; ".join(names) + (f" and {len(boxes) - 4} more" if len(boxes) > 4 else "") or "nothing"


# Drawing -----------------------------------------------------------------------------------------


class Counted(Protocol):
    """A set of origins in one volume that can be counted, and the k-th of them found."""

    @property
    def count(self) -> int:
        """How many there are."""

    def find(self, k: int) -> Int3:
        """The k-th of them."""


class Places(Counted, Protocol):
    """Such a set of which a block can be cut."""

    def within(self, box: Box) -> Counted:
        """Those in a box of origins."""


P = TypeVar("P", bound=Counted)


@dataclass(frozen=True)
class Anywhere:
    """All origins of disjoint boxes."""

    boxes: tuple[Box, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(math.prod(box.size_vx) for box in self.boxes))

    @property
    def count(self) -> int:
        """How many there are."""
        return self._ends[-1] if self.boxes else 0

    def find(self, k: int) -> Int3:
        """The k-th of them.

        >>> Anywhere((Box((0, 0, 0), (1, 2, 3)), Box((5, 0, 0), (1, 1, 9)))).find(8)
        (5, 0, 2)
        """
        index = bisect.bisect_right(self._ends, k)
        (z, y, x), (_, size_y, size_x) = self.boxes[index]
        rest, dx = divmod(k - (self._ends[index - 1] if index else 0), size_x)
        dz, dy = divmod(rest, size_y)
        return z + dz, y + dy, x + dx

    def within(self, box: Box) -> Anywhere:
        """Those in a box of origins."""
        return Anywhere(tuple(part for own in self.boxes if (part := intersect(own, box))))


@dataclass(frozen=True, eq=False)
class Everywhere(Sequence[list[Box]]):
    """All origins of many volumes: the boxes of each are made when they are asked for."""

    sizes: np.ndarray  # (V, 3) origins along (z, y, x)

    @staticmethod
    def of(shapes: np.ndarray, crop_vx: Int3) -> Everywhere:
        """Those of crops of one shape; refuses volumes that are smaller."""
        sizes = shapes.astype(np.int64) - (np.array(crop_vx) - 1)
        small = np.flatnonzero((sizes < 1).any(1))
        if len(small):
            raise BoxError(
                f"crop {crop_vx} exceeds {len(small)} of {len(shapes)} volumes, as number "
                f"{small[0] + 1} of shape {int3(shapes[small[0]])}; take a smaller crop, or leave them "
                "out (?least_px=N in the address of images)"
            )
        return Everywhere(sizes)

    @property
    def counts(self) -> np.ndarray:
        """How many each volume has."""
        return self.sizes.prod(1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: Any) -> Any:
        return [Box((0, 0, 0), int3(self.sizes[number]))]


@dataclass(frozen=True, eq=False)
class EachAnywhere(Sequence["Anywhere"]):
    """The same as places to be drawn from."""

    origins: Everywhere

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, number: Any) -> Any:
        return Anywhere(tuple(self.origins[number]))


@dataclass(frozen=True)
class Mixture(Generic[P]):
    """Kinds of places, each with its share of the samples, in several volumes."""

    kinds: tuple[Sequence[P], ...]  # of each kind, in each volume
    shares: tuple[float, ...]  # of each kind
    weights: tuple[float, ...] | None = None  # of each volume; None: by the number of places

    @cached_property
    def _volume_ends(self) -> list[Sequence[float]]:
        """For each kind, how likely the volumes up to each are: the last is the whole."""
        ends: list[Any] = []
        for places in self.kinds:
            if isinstance(places, EachAnywhere):  # an array: there may be half a million
                ends.append(np.cumsum(self.weights or places.origins.counts))
                continue
            if self.weights is None:
                each: list[float] = [place.count for place in places]
            else:
                pairs = zip(self.weights, places, strict=True)
                each = [weight if place.count else 0.0 for weight, place in pairs]
            ends.append(list(itertools.accumulate(each)))
        return ends

    @cached_property
    def _share_ends(self) -> list[float]:
        return list(itertools.accumulate(self.shares))

    def draw(self, generator: np.random.Generator) -> tuple[int, Int3]:
        """A volume and an origin in it."""
        kind = 0
        if len(self.kinds) > 1:
            kind = _chosen(self._share_ends, generator)
        ends, places = self._volume_ends[kind], self.kinds[kind]
        if self.weights is not None:
            volume = _chosen(ends, generator)
            return volume, places[volume].find(int(generator.integers(places[volume].count)))
        k = int(generator.integers(int(ends[-1])))
        volume = bisect.bisect_right(ends, k)
        return volume, places[volume].find(k - int(ends[volume - 1] if volume else 0))

    def within(self: Mixture[Places], volume: int, box: Box) -> Mixture[Counted]:
        """The places of one volume in a box of origins, each as likely as before."""
        kinds: list[tuple[Counted, ...]] = []
        shares: list[float] = []
        for places, share, ends in zip(self.kinds, self.shares, self._volume_ends, strict=True):
            own = places[volume]
            part = own.within(box)
            if part.count:
                likely = (ends[volume] - (ends[volume - 1] if volume else 0)) / ends[-1]
                kinds.append((part,))
                shares.append(share * likely * part.count / own.count)
        return Mixture(tuple(kinds), tuple(shares))


def _chosen(ends: Sequence[float], generator: np.random.Generator) -> int:
    """An index, in proportion to the steps between `ends`."""
    at = bisect.bisect_right(ends, generator.random() * ends[-1])
    while at >= len(ends) or ends[at] == (ends[at - 1] if at else 0):  # rounding, at the very end
        at -= 1
    return at

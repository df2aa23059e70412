"""Labels and masks beside a raw volume: where they lie on it.

Each has a voxel size and an origin of its own. Labels must lie on the voxels of the raw volume and
may cover a part of it; a mask may have any voxel size: the voxel nearest to a place counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.geometry import Box, Float3, Int3, float3, int3, intersect, shifted, span
from em_data.volume import Volume

SAME_SIZE = 1e-3  # relative difference of voxel sizes that may be rounding
DRIFT_VX = 0.5  # and how far apart the two grids may end where both do: still the same voxels
ON_GRID_VX = 0.05  # distance from the grid of voxels that is rounding


@dataclass(frozen=True)
class PlacedVolume:
    """A label or mask volume in its place on a raw volume."""

    volume: Volume
    raw_shape: Int3
    step: Float3 = (1.0, 1.0, 1.0)  # its voxels per raw voxel
    start: Float3 = (0.0, 0.0, 0.0)  # where raw voxel (0, 0, 0) lies, in its voxels
    ignore: int | None = None  # value of voxels that are not labelled: no crop is aimed at them

    def nearest(self, axis: int, start: int, stop: int) -> np.ndarray:
        """Its voxel nearest to each raw voxel of a range along one axis; outside may be met."""
        places = np.arange(start, stop) * self.step[axis] + (self.start[axis] + 0.5)
        return np.floor(places).astype(np.int64)

    @cached_property
    def covered(self) -> Box | None:
        """The raw voxels that it says something about."""
        low, high = [], []
        for axis, (raw, own) in enumerate(zip(self.raw_shape, self.volume.shape, strict=True)):

            def nearest(place: int, axis: int = axis) -> int:
                return int(self.nearest(axis, place, place + 1)[0])

            # Not by counting through, since a damaged file may declare any size.
            low.append(bisect_left(range(raw), 0, key=nearest))
            high.append(bisect_left(range(raw), own, key=nearest))
        return span(low, high) if all(o < h for o, h in zip(low, high, strict=True)) else None

    def own_box(self, box: Box) -> Box:
        """Its voxels at a box of raw voxels, for layers on the raw grid."""
        return Box(
            int3([round(o + s) for o, s in zip(box.origin_vx, self.start, strict=True)]),
            box.size_vx,
        )


@dataclass(frozen=True)
class Labels:
    """Label volumes of one raw volume, on its voxels: one channel each."""

    names: tuple[str, ...]
    layers: tuple[PlacedVolume, ...]

    @property
    def covered(self) -> tuple[Box, ...]:
        """The raw voxels that any of the channels covers."""
        return tuple(box for layer in self.layers if (box := layer.covered))

    @property
    def dtype(self) -> np.dtype[Any]:
        """A type that holds the values of all channels."""
        return np.result_type(*(layer.volume.dtype for layer in self.layers))

    @property
    def nbytes(self) -> int:
        """Bytes of all label volumes when decoded."""
        return sum(layer.volume.nbytes for layer in self.layers)

    def read(self, box: Box) -> np.ndarray:
        """The labels of a box of raw voxels, 0 where there are none: (C, Z, Y, X)."""
        values = np.zeros((len(self.layers), *box.size_vx), self.dtype)
        for channel, layer in zip(values, self.layers, strict=True):
            common = intersect(box, layer.covered) if layer.covered else None
            if common is not None:
                inner = shifted(common, box.origin_vx, -1)
                channel[inner.slices] = layer.volume.read(layer.own_box(common))
        return values

    def valid(self, box: Box) -> np.ndarray:
        """Which voxels of a box of raw voxels are labelled: (C, Z, Y, X) bool."""
        valid = np.zeros((len(self.layers), *box.size_vx), bool)
        for channel, layer in zip(valid, self.layers, strict=True):
            common = intersect(box, layer.covered) if layer.covered else None
            if common is not None:
                channel[shifted(common, box.origin_vx, -1).slices] = True
        return valid

    def held_in_memory(self) -> Labels:
        """The same labels with all of their voxels read once."""
        held = (replace(layer, volume=layer.volume.held_in_memory()) for layer in self.layers)
        return replace(self, layers=tuple(held))


def place_labels(
    raw: Volume, volumes: Mapping[str, Volume], *, ignore: int | None = None
) -> Labels:
    """Labels by name on the voxels of `raw`, each where its own voxel size and origin put it.

    Labels may cover a part of the raw volume. Another voxel size, an origin between voxels and labels
    beside the raw volume are refused. At voxels of the value `ignore` no crop is aimed; they are read
    and valid as all others.

    >>> raw = Volume(np.zeros((9, 8, 8), np.uint8), "raw", "numpy", (40, 4, 4))
    >>> cells = Volume(np.ones((2, 8, 8), np.uint8), "cells", "numpy", (40, 4, 4), (80, 0, 0))
    >>> place_labels(raw, {"cells": cells}).covered
    (Box(origin_vx=(2, 0, 0), size_vx=(2, 8, 8)),)
    """
    if not volumes:
        raise VolumeFormatError(f"{raw.source} was given no labels; name at least one volume")
    layers = []
    for name, volume in volumes.items():
        if volume.dtype.kind not in "bui":
            raise VolumeFormatError(
                f"labels {name!r} ({volume.source}) hold {volume.dtype}; wanted integers or bool"
            )
        layers.append(replace(_on_voxels(raw, volume, f"labels {name!r}"), ignore=ignore))
    check_types({f"labels {name!r}": volume.dtype for name, volume in volumes.items()})
    return Labels(tuple(volumes), tuple(layers))


def place_target(raw: Volume, target: Volume) -> Labels:
    """Another image of what `raw` shows, on its voxels: what a restoration of it is compared with.

    It holds the type of `raw`, so that the same number is the same grey.
    """
    if target.dtype != raw.dtype:
        raise VolumeFormatError(
            f"target {target.source} holds {target.dtype}, {raw.source} {raw.dtype}: the same number "
            "must be the same grey; convert one of them"
        )
    return Labels(("target",), (_on_voxels(raw, target, "target"),))


def check_types(dtypes: Mapping[str, np.dtype[Any]]) -> None:
    """Refuse labels, by what to call them, whose numbers no integer type holds."""
    if np.result_type(*dtypes.values()).kind == "f":  # large numbers would lose their digits
        one, other = (next(n for n, dtype in dtypes.items() if dtype.kind == k) for k in "ui")
        raise VolumeFormatError(
            f"{one} hold {dtypes[one]}, {other} {dtypes[other]}: no integer type holds the numbers "
            "of both; convert one of them"
        )


def place_mask(raw: Volume, mask: Volume) -> PlacedVolume:
    """A mask on `raw`, of any voxel size: what is not zero is allowed, outside of it nothing is."""
    return _overlapping(raw, _place(raw, mask, "mask"), "mask")


def _place(raw: Volume, volume: Volume, name: str) -> PlacedVolume:
    volume.check_one_channel()
    if raw.voxel_size_nm is None or volume.voxel_size_nm is None:
        known = [one for one in (raw, volume) if one.voxel_size_nm]
        if raw.shape == volume.shape and not known:
            return PlacedVolume(volume, raw.shape)
        unknown = " and ".join(o.source for o in (raw, volume) if o.voxel_size_nm is None)
        raise VolumeFormatError(
            f"{name} ({volume.source}, {volume.shape} voxels of {_nm(volume)}) cannot be placed on "
            f"{raw.source} ({raw.shape} voxels of {_nm(raw)}): {unknown} does not say its voxel size; "
            "say it in the address, ?voxel_nm=Z,Y,X, or give voxel_size_nm, and origin_nm, when "
            "opening it"
        )
    sizes = list(zip(raw.voxel_size_nm, volume.voxel_size_nm, strict=True))
    from_nm = zip(raw.origin_nm, volume.origin_nm, sizes, strict=True)
    step = [
        1.0 if abs(r / s - 1) <= min(SAME_SIZE, DRIFT_VX / n) else r / s
        for (r, s), n in zip(sizes, _shared(raw, volume), strict=True)
    ]
    start = [(ours - theirs) / size for ours, theirs, (_, size) in from_nm]
    return PlacedVolume(volume, raw.shape, float3(step), float3(start))


def _on_voxels(raw: Volume, volume: Volume, name: str) -> PlacedVolume:
    """A volume whose voxels are those of `raw`, one for one, wherever it begins and ends."""
    layer = _place(raw, volume, name)
    for axis, step, start in zip("zyx", layer.step, layer.start, strict=True):
        if step != 1:
            n = _shared(raw, volume)["zyx".index(axis)]
            raise VolumeFormatError(
                f"{name} ({volume.source}) have voxels of {_nm(volume)}, "
                f"{raw.source} has {_nm(raw)}, which is {abs(step - 1) * n:.3g} voxels apart after "
                f"{n} on {axis}; resample the {name.split()[0]}, mend the voxel size that is wrong "
                "(voxel_size_nm), or open the level of the raw volume that fits (at_nm)"
            )
        if abs(start - round(start)) > ON_GRID_VX:
            raise VolumeFormatError(
                f"{name} ({volume.source}) begin at {_at(volume)}, {raw.source} at "
                f"{_at(raw)}: {start % 1:.2f} voxels off its grid on {axis}; resample the "
                f"{name.split()[0]}, or mend the origin that is wrong (origin_nm)"
            )
    on_grid = float3([round(start) for start in layer.start])
    return _overlapping(raw, replace(layer, step=(1.0, 1.0, 1.0), start=on_grid), name)


def _shared(raw: Volume, volume: Volume) -> Int3:
    """The most voxels along each axis that two volumes of one voxel size can have in common."""
    return int3([min(pair) for pair in zip(raw.shape, volume.shape, strict=True)])


def _overlapping(raw: Volume, layer: PlacedVolume, name: str) -> PlacedVolume:
    if layer.covered is None:
        own = layer.volume
        raise VolumeFormatError(
            f"{name} ({own.source}: {own.shape} voxels of {_nm(own)} from {_at(own)}) does not overlap "
            f"{raw.source} ({raw.shape} voxels of {_nm(raw)} from {_at(raw)}); give what belongs to "
            "this volume, or mend the origin that is wrong (origin_nm)"
        )
    return layer


def _nm(volume: Volume) -> str:
    size = volume.voxel_size_nm
    return "unknown size" if size is None else " × ".join(f"{s:g}" for s in size) + " nm"


def _at(volume: Volume) -> str:
    return "(" + ", ".join(f"{o:g}" for o in volume.origin_nm) + ") nm"

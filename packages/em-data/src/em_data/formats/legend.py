"""What the values of an image mean: names and colours of its channels or classes, where it says so.

Read from what OME-Zarr keeps beside the voxels (`omero`, `image-label`), and from precomputed's type.
`em_data.writer.store` writes the former.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr

from em_data.formats import precomputed, remote
from em_data.formats.location import Place
from em_data.formats.ome_zarr import MARKERS
from em_data.geometry import Int3, int3

WHITE = "FFFFFF"  # of a channel without a colour, which the format asks for


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What an image says about its values."""

    is_label: bool = False
    """Whether values are names instead of measurements."""
    channels: tuple[str, ...] = ()
    """Names of the channels, where there are several."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Names of values."""
    colours: Mapping[int, Int3] = field(default_factory=dict)
    """RGB of channels by number, or of values; what is not shown has none."""


def read_legend(address: str) -> Legend:
    """The legend of the volume at an address; an empty one where it says nothing."""
    if address.startswith(precomputed.SCHEME) or (Path(address) / "info").is_file():
        url = precomputed.key_value_url(address.removeprefix(precomputed.SCHEME))
        info = precomputed.read_json(url, "info") or {}
        return Legend(is_label=info.get("type") == "segmentation")
    if not (remote.is_remote(address) or Path(address).is_dir()):
        return Legend()
    place = Place(address.rstrip("/"))
    markers = place.found(MARKERS)
    if not markers:
        return Legend()
    if place.is_remote:
        remote.GUARD.enter()
    zarr_format: Any = 3 if "zarr.json" in markers else 2
    node = zarr.open(place.store(), mode="r", zarr_format=zarr_format, use_consolidated=False)
    stored: dict[str, Any] = dict(node.attrs)
    described: dict[str, Any] = stored.get("ome", stored)
    if not isinstance(node, zarr.Group) or not described.get("multiscales"):
        return Legend()
    multiscale = described["multiscales"][0]
    axes = [axis["name"] if isinstance(axis, Mapping) else axis for axis in multiscale["axes"]]
    array = node[multiscale["datasets"][0]["path"]]
    assert isinstance(array, zarr.Array)
    count = array.shape[axes.index("c")] if "c" in axes else 1
    if "image-label" in described:
        return _of_label(described["image-label"] or {})
    return _of_channels((described.get("omero") or {}).get("channels") or (), count)


def _of_label(about: Mapping[str, Any]) -> Legend:
    colours = {
        int(one["label-value"]): int3(one["rgba"][:3])
        for one in about.get("colors") or ()
        if one.get("rgba") and (*one["rgba"], 255)[3] > 0
    }
    names = {
        int(one["label-value"]): str(one["name"])
        for one in about.get("properties") or ()
        if "name" in one
    }
    return Legend(is_label=True, classes=names, colours=colours)


def _of_channels(channels: Sequence[Mapping[str, Any]], count: int) -> Legend:
    if count == 1:
        return Legend()
    found = [*channels[:count], *[{}] * (count - len(channels))]
    names = tuple(str(one.get("label", f"channel {i}")) for i, one in enumerate(found))
    colours = {
        i: int3([int(one["color"][k : k + 2], 16) for k in (0, 2, 4)])
        for i, one in enumerate(found)
        if len(str(one.get("color", ""))) >= 6 and one["color"].upper() != WHITE
    }
    return Legend(channels=names, colours=colours)

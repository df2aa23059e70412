"""What an address says after its place, parsed once: `stack.tif?voxel_nm=50,4,4&channel=1`.

Options stand at the end, after a dataset too, with `&` between several. A path that exists as it is
written is taken as it is, whatever it is called.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from em_data.errors import VolumeFormatError
from em_data.formats.axes import Gaps
from em_data.geometry import Float3, float3

OPTION = re.compile(r"[A-Za-z_]\w*=")


class Option(NamedTuple):
    """One option of addresses."""

    example: str
    formats: tuple[str, ...] = ()  # beginnings of `Volume.format`; none: all


OPTIONS = {
    "voxel_nm": Option("voxel_nm=50,4,4"),
    "channel": Option("channel=0"),
    "gaps": Option("gaps=close", ("PNG", "TIFF")),
    "match": Option("match={name}_mask.png", ("images",)),
    "least_px": Option("least_px=128", ("images",)),
    "unreadable": Option("unreadable=skip", ("images",)),
    "take": Option("take=0:100", ("images",)),
}


def split_options(address: str) -> tuple[str, dict[str, str]]:
    """The place and the options of an address, each known by name.

    >>> split_options("stack.h5::raw?voxel_nm=50,4,4&channel=1")
    ('stack.h5::raw', {'voxel_nm': '50,4,4', 'channel': '1'})
    """
    place, _, text = address.rpartition("?")
    path, _, dataset = address.partition("::")
    if not place or not OPTION.match(text) or ("?" not in dataset and Path(path).exists()):
        return address, {}
    options: dict[str, str] = {}
    for part in text.split("&"):
        name, equals, value = part.partition("=")
        if name not in OPTIONS or not equals or not value or name in options:
            known = ", ".join(option.example for option in OPTIONS.values())
            what = "is given twice" if name in options else "is no option of an address"
            raise VolumeFormatError(
                f"{address}: {part!r} {what}; known after '?' are {known} (with & between several)"
            )
        options[name] = value
    return place, options


def check_options(address: str, options: dict[str, str], format: str) -> None:
    """Refuse options that say nothing about a format."""
    for name in options:
        formats = OPTIONS[name].formats
        if formats and not format.startswith(formats):
            raise VolumeFormatError(
                f"{address}: {name} is an option of {', '.join(formats)}, and this is {format}; "
                "leave it out"
            )


def gaps_of(address: str, options: dict[str, str]) -> Gaps:
    """What an address says about gaps in numbered slices."""
    if options["gaps"] not in ("refuse", "close"):
        raise VolumeFormatError(
            f"{address}: gaps is {options['gaps']!r}; wanted close (the slices follow each other) or "
            "refuse"
        )
    return "close" if options["gaps"] == "close" else "refuse"


def voxel_nm(address: str, options: dict[str, str]) -> Float3 | None:
    """The voxel size that an address states."""
    text = options.get("voxel_nm")
    if text is None:
        return None
    try:
        size = float3([float(number) for number in text.split(",")])
    except ValueError:
        size = (0.0, 0.0, 0.0)
    if not all(0 < s < float("inf") for s in size):
        raise VolumeFormatError(
            f"{address}: voxel_nm is {text!r}; wanted three sizes in nm above 0, along z, y and x, "
            "as voxel_nm=50,4,4"
        )
    return size

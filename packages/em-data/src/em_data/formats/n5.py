"""N5 through tensorstore: one dataset, or a group with the levels `s0`, `s1`, ….

N5 itself has no units. They are read from what is in use: `transform` (Janelia's COSEM),
`pixelResolution` (n5-viewer, BigStitcher), or `resolution` with `units` (tensorstore), and from
`downsamplingFactors` for coarser levels. All but `transform` are in the order (x, y, z).
https://github.com/saalfeldlab/n5
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.formats.axes import Wanted, nearest_level, pick_axes, units_nm, voxel_size
from em_data.formats.precomputed import key_value_url, read_json, tensorstore_array
from em_data.geometry import Float3, float3, int3
from em_data.volume import Level, Volume, as_volume

SCHEME = "n5://"
ATTRIBUTES = "attributes.json"


def open_n5(address: str, wanted: Wanted) -> Volume:
    """The N5 dataset or multiscale group at a URL that tensorstore knows, or in a folder."""
    url = key_value_url(address)
    group = read_json(url, ATTRIBUTES)
    datasets: list[tuple[str, dict[str, Any]]] = []
    if group and "dimensions" in group:
        datasets.append(("", group))
    else:
        for number in itertools.count():
            attributes = read_json(f"{url}s{number}/", ATTRIBUTES)
            if not attributes or "dimensions" not in attributes:
                break
            datasets.append((f"s{number}", attributes))
    if not datasets:
        if group is None:
            raise VolumeNotFoundError(f"no N5 dataset at {url}: it has no {ATTRIBUTES}")
        raise VolumeFormatError(
            f"{url} is an N5 group without the levels s0, s1, …; name a dataset in it"
        )
    try:
        axes = _axes(url, datasets[0][1])
        found = [_level(url, name, a, axes, group or {}, i) for i, (name, a) in enumerate(datasets)]
        levels = tuple(level for level, _ in found)
        chosen = nearest_level(address, levels, wanted.at_nm)
        name, attributes = datasets[chosen]
        compression = attributes.get("compression", {"type": "raw"})
        codec = compression["cname"] if compression["type"] == "blosc" else ""
        codec = f"{compression['type']} {codec}".strip()
    except VolumeFormatError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise VolumeFormatError(
            f"{url}: its attributes are not understood ({type(error).__name__}: {error}); repair them"
        ) from error
    array = tensorstore_array({"driver": "n5", "kvstore": f"{url}{name}".rstrip("/") + "/"}, codec)
    return replace(
        as_volume(pick_axes(array, axes, address, wanted), address, "N5"),
        voxel_size_nm=levels[chosen].voxel_size_nm,
        origin_nm=found[chosen][1],
        levels=levels if len(levels) > 1 else (),
        level=chosen,
    )


def _axes(url: str, attributes: Mapping[str, Any]) -> list[str]:
    """Names in C order, the last varying fastest."""
    if "axes" in attributes:
        return [str(axis).lower() for axis in attributes["axes"][::-1]]
    if len(attributes["dimensions"]) != 3:
        raise VolumeFormatError(
            f"{url} has {len(attributes['dimensions'])} axes and no attribute 'axes' that names "
            "them; wanted (x, y, z): add it"
        )
    return ["z", "y", "x"]


def _level(
    url: str,
    name: str,
    attributes: Mapping[str, Any],
    axes: Sequence[str],
    group: Mapping[str, Any],
    number: int,
) -> tuple[Level, Float3]:
    """One level with the position of its first voxel."""
    shape = dict(zip(axes, attributes["dimensions"][::-1], strict=True))
    shape_vx = int3([shape[axis] for axis in "zyx"])
    size, origin = _transform(url, attributes) or _scaled(url, attributes, axes, group, number)
    return Level(name, shape_vx, size), origin


def _transform(url: str, attributes: Mapping[str, Any]) -> tuple[Float3, Float3] | None:
    """COSEM's transform, which names its axes."""
    if "transform" not in attributes:
        return None
    stated = attributes["transform"]
    place = [list(stated["axes"]).index(axis) for axis in "zyx"]
    nm = units_nm(url, [stated["units"][i] for i in place]) or [1.0] * 3
    size = [stated["scale"][i] * u for i, u in zip(place, nm, strict=True)]
    origin = [stated["translate"][i] * u for i, u in zip(place, nm, strict=True)]
    return voxel_size(url, size), float3(origin)


def _scaled(
    url: str,
    attributes: Mapping[str, Any],
    axes: Sequence[str],
    group: Mapping[str, Any],
    number: int,
) -> tuple[Float3 | None, Float3]:
    """The voxel size of the finest level, stated here or by the group, times the own factors."""
    factors = attributes.get("downsamplingFactors", [1, 1, 1])
    if "downsamplingFactors" not in attributes:
        listed = group.get("downsamplingFactors") or group.get("scales") or []
        factors = listed[number] if number < len(listed) else factors
    own = _base(url, attributes, axes)
    base = own or _base(url, group, axes)
    if own and "downsamplingFactors" not in attributes:  # then it is the size of this level
        base = [b / f for b, f in zip(own, factors[::-1], strict=True)]
    if base is None:
        return None, (0.0, 0.0, 0.0)
    size = [b * f for b, f in zip(base, factors[::-1], strict=True)]
    # A coarse voxel is centred on the fine ones that it averages.
    origin = [b * (f - 1) / 2 for b, f in zip(base, factors[::-1], strict=True)]
    return voxel_size(url, size), float3(origin)


def _base(url: str, attributes: Mapping[str, Any], axes: Sequence[str]) -> list[float] | None:
    """Voxel size (z, y, x) in nm that a dataset or group states."""
    stated = attributes.get("pixelResolution")
    if isinstance(stated, Mapping):
        numbers, units = stated["dimensions"][::-1], [stated.get("unit")] * 3
    elif "resolution" in attributes and "units" in attributes:
        named = zip(axes, attributes["resolution"][::-1], attributes["units"][::-1], strict=True)
        spatial = {axis: (number, unit) for axis, number, unit in named if axis in "zyx"}
        numbers, units = map(list, zip(*(spatial[axis] for axis in "zyx"), strict=True))
    else:
        return None
    nm = units_nm(url, units)
    return nm and [float(n) * u for n, u in zip(numbers, nm, strict=True)]

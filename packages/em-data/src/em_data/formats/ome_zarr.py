"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3, sharded or not), and plain zarr arrays.

Axes, units, scale and translation come from the `multiscales` metadata of OME-NGFF,
https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import zarr

from em_data.errors import VolumeFormatError, VolumeReadError
from em_data.formats import remote
from em_data.formats.axes import (
    Wanted,
    check_axes,
    check_choice,
    first_voxel,
    nearest_level,
    pick_axes,
    units_nm,
    voxel_size,
)
from em_data.formats.location import Place
from em_data.formats.metadata import below, listed, understood
from em_data.formats.zarr_chunks import ChunkReader, chunk_reader
from em_data.geometry import Box, Float3, int3
from em_data.volume import Array, Level, Volume, as_volume

MARKERS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
# In flight at once, in the whole process: zarr-python's own limit of 10 leaves a server that is 30 ms
# away idle for most of the time.
REQUESTS = 64
LARGEST_CHUNK = 2**40  # bytes: memory for a whole chunk is taken before one is decoded


def open_zarr(place: Place, markers: set[str], wanted: Wanted) -> Volume:
    """The zarr array or OME-Zarr image at `place`, where the files `markers` were found."""
    node = _open_node(place, 3 if "zarr.json" in markers else 2)
    if isinstance(node, zarr.Array):
        array: Array = ZarrArray(node, place)
        names = getattr(node.metadata, "dimension_names", None) or ()
        if set("zyx") <= set(names):
            array = pick_axes(array, names, place.address, wanted)
        else:  # an array without names, or with names that say nothing
            check_choice(place.address, "zyx", wanted)
        return as_volume(array, place.address, f"zarr v{node.metadata.zarr_format}")
    return _open_image(place, node, wanted)


def _open_node(place: Place, zarr_format: int, path: str = "") -> zarr.Array | zarr.Group:
    if place.is_remote:
        remote.GUARD.enter()
    store = place.store()
    try:
        # Consolidated metadata is a copy that goes stale when labels are added.
        node = zarr.open(
            store,
            mode="r",
            path=path,
            zarr_format=zarr_format,  # type: ignore[arg-type]
            use_consolidated=False,
        )
    except VolumeReadError:
        raise
    except Exception as error:  # what zarr and its codecs stumble on has many names
        where = f"{place.address}/{path}".rstrip("/")
        raise VolumeFormatError(
            f"{where}: its zarr v{zarr_format} metadata cannot be read "
            f"({type(error).__name__}: {error}); wanted an OME-Zarr image or a zarr array"
        ) from error
    if isinstance(node, zarr.Array):
        _check_chunks(node, f"{place.address}/{path}".rstrip("/"))
        outermost = node.metadata.codecs[-1:] if zarr_format == 3 else node.compressors  # type: ignore[union-attr]
        store.blosc = [_codec_name(codec).partition(" ")[0] for codec in outermost] == ["blosc"]
    return node


def _check_chunks(array: zarr.Array, where: str) -> None:
    """Refuse what zarr-python lets pass: chunks without voxels, or larger than any memory."""
    chunk = array.chunks
    size = math.prod(chunk) * array.dtype.itemsize
    if min(chunk, default=1) < 1 or size > LARGEST_CHUNK:
        raise VolumeFormatError(
            f"{where}: its metadata give chunks of {tuple(chunk)} voxels; wanted at least 1 along "
            f"every axis and at most {LARGEST_CHUNK >> 40} TiB: repair the metadata"
        )


@dataclass(frozen=True)
class ZarrArray:
    """A zarr array that names the file when a chunk cannot be decoded."""

    array: zarr.Array
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, all axes."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """Type of the voxels."""
        return self.array.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Voxels that are decoded together."""
        return self.array.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Voxels of one file, if it holds several chunks."""
        return self.array.shards

    @property
    def compression(self) -> str | None:
        """Names of the filters and compressors."""
        return ", ".join(map(_codec_name, (*self.array.filters, *self.array.compressors))) or None

    @cached_property
    def _reader(self) -> ChunkReader | None:
        return chunk_reader(self.array)

    def read_into(self, box: Box, out: np.ndarray) -> np.ndarray:
        """The voxels of a box, decoded into `out` where this array is read chunk by chunk."""
        if self.place.is_remote or self._reader is None:
            return np.asarray(self[box.slices])
        return self._reader.read(box, out)

    def __getitem__(self, index: tuple[int | slice, ...]) -> Any:
        if self.place.is_remote:
            remote.GUARD.enter()
            if zarr.config.get("async.concurrency") < REQUESTS:
                zarr.config.set({"async.concurrency": REQUESTS})
        elif self._reader is not None and all(isinstance(part, slice) for part in index):
            origin = int3([_start(part) for part in index])
            stops = (part.stop for part in index if isinstance(part, slice))
            size = int3([stop - o for stop, o in zip(stops, origin, strict=True)])
            return self._reader.read(Box(origin, size))
        try:
            return self.array[index]
        except VolumeReadError:
            raise
        except Exception as error:  # every codec has errors of its own
            raise VolumeReadError(
                f"{self._damaged(index)} cannot be decoded ({type(error).__name__}: {error}); "
                "restore this file, or delete it to read the fill value there"
            ) from error

    def _damaged(self, index: tuple[int | slice, ...]) -> str:
        """The file and the place of the first chunk of `index` that cannot be read."""
        name = f"{self.place.address}/{self.array.path}".rstrip("/")
        for chunk in _chunks(index, self.chunks):
            voxel = tuple(
                max(c * n, _start(i)) for c, n, i in zip(chunk, self.chunks, index, strict=True)
            )
            try:
                self.array[voxel]
            except Exception:
                files = [v // n for v, n in zip(voxel, self.shards or self.chunks, strict=True)]
                return (
                    f"{name}/{self.array.metadata.encode_chunk_key(tuple(files))}, chunk {chunk},"
                )
        return f"{name}, voxels {index},"


def _start(part: int | slice) -> int:
    return part.start if isinstance(part, slice) else part


def _chunks(index: Sequence[int | slice], chunks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The grid coordinates of the chunks that `index` touches."""
    ranges = []
    for part, n in zip(index, chunks, strict=True):
        last = part.stop - 1 if isinstance(part, slice) else part
        ranges.append(range(_start(part) // n, last // n + 1))
    return itertools.product(*ranges)


def _codec_name(codec: Any) -> str:
    """`blosc zstd` for numcodecs (zarr v2) and zarr v3 codecs alike."""
    if hasattr(codec, "codec_id"):
        config = codec.get_config()
        name = config["id"]
    else:
        described = codec.to_dict()
        name, config = described["name"], described.get("configuration", {})
    inner = config.get("cname") if name == "blosc" else None
    return f"{name} {getattr(inner, 'value', inner)}" if inner else str(name)


# OME-NGFF ----------------------------------------------------------------------------------------


def _open_image(place: Place, group: zarr.Group, wanted: Wanted) -> Volume:
    attributes: Mapping[str, Any] = dict(group.attrs)
    version = "0.5" if "ome" in attributes else "0.4"
    attributes = attributes.get("ome", attributes)
    if not isinstance(attributes, Mapping) or not attributes.get("multiscales"):
        raise VolumeFormatError(_no_image(place, group, attributes))
    here = f"{place.address}: its 'multiscales' metadata (OME-NGFF {version})"
    with understood(here):
        multiscale = listed(here, attributes["multiscales"])[0]
        axes, unit_nm = _axes(place, multiscale)
        datasets = listed(f"{here}: 'datasets'", multiscale["datasets"])
        found = [_level(place, group, multiscale, d, axes, unit_nm) for d in datasets]
        channels = [str(c["label"]) for c in (attributes.get("omero") or {}).get("channels", ())]
    levels = tuple(level for level, _ in found)
    chosen = nearest_level(place.address, levels, wanted.at_nm)
    level, origin_nm = found[chosen]
    node = _open_node(place, group.metadata.zarr_format, level.path)
    assert isinstance(node, zarr.Array)  # _level has seen it
    array = pick_axes(ZarrArray(node, place), axes, place.address, wanted, channels)
    return replace(
        as_volume(array, place.address, f"OME-Zarr {version}"),
        voxel_size_nm=level.voxel_size_nm,
        origin_nm=origin_nm,
        levels=levels,
        level=chosen,
        label_names=_label_names(place, group),
        open_label=partial(_open_label, place, wanted),
    )


def _label_names(place: Place, group: zarr.Group) -> tuple[str, ...]:
    here = f"{place.address}/labels: its list of labels"
    with understood(here):
        if "labels" not in group:
            return ()
        stored: dict[str, Any] = dict(group["labels"].attrs)
        names = stored.get("ome", stored).get("labels", ())
        return (
            tuple(below(f"{here}: a name", name) for name in listed(here, names)) if names else ()
        )


def _open_label(place: Place, wanted: Wanted, name: str) -> Volume:
    label = place / "labels" / name
    # A label image usually has no channels, whatever the raw volume has.
    with understood(label.address):
        return open_zarr(label, label.found(MARKERS), wanted._replace(channel=None))


def _no_image(place: Place, group: zarr.Group, attributes: Mapping[str, Any]) -> str:
    """Why a group is no image, and what to name instead."""
    try:
        # HTTP has no way to list; buckets may forbid it, each in its own way.
        inside = [] if place.address.startswith("http") else sorted(group.keys())
    except Exception:
        inside = []
    listed = ", ".join(inside) or "nothing that can be listed"
    here = place.address
    if "bioformats2raw.layout" in attributes:
        return (
            f"{here} holds several images (bioformats2raw layout): {listed}; name one, as {here}/0"
        )
    if "plate" in attributes or "well" in attributes:
        return f"{here} is a plate or a well of images, with {listed} in it; name one image of it"
    if "labels" in attributes:
        names = ", ".join(map(str, attributes["labels"]))
        return f"{here} is a folder of label images ({names}); name one of them"
    return (
        f"{here} is a zarr group without OME-NGFF 'multiscales' metadata; "
        f"name one of the arrays or images in it ({listed})"
    )


def _axes(place: Place, multiscale: Mapping[str, Any]) -> tuple[list[str], list[float] | None]:
    """Names of all axes, and nanometres per unit of the spatial ones."""
    # OME-NGFF 0.3 has names without units.
    axes = [a if isinstance(a, Mapping) else {"name": a} for a in multiscale.get("axes") or ()]
    names = [str(axis["name"]) for axis in axes]
    check_axes(place.address, names)
    return names, units_nm(place.address, [a.get("unit") for a in axes if a["name"] in "zyx"])


def _level(
    place: Place,
    group: zarr.Group,
    multiscale: Mapping[str, Any],
    dataset: Mapping[str, Any],
    axes: list[str],
    unit_nm: list[float] | None,
) -> tuple[Level, Float3]:
    """One resolution with the position of its first voxel, in nanometres."""
    name = below(f"{place.address}: the path of a level", dataset["path"])
    try:
        shape: tuple[int, ...] = group[name].shape  # type: ignore[union-attr]
    except (KeyError, ValueError, AttributeError) as error:
        raise VolumeFormatError(
            f"{place.address}: level {name!r} is named in the metadata but cannot be opened "
            f"({error}); restore it, or take it out of the metadata"
        ) from error
    if len(shape) != len(axes):
        raise VolumeFormatError(
            f"{place.address}: level {name!r} has the shape {shape}, but the axes are {axes}; "
            "repair the metadata"
        )
    spatial = [i for i, axis in enumerate(axes) if axis in "zyx"]
    shape_vx = int3([shape[i] for i in spatial])
    # Transformations of a dataset come first, those of the whole image are applied to the result.
    scaled, scale, translation = False, [1.0] * len(axes), [0.0] * len(axes)
    for step in (
        *dataset.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        kind = step["type"]
        if kind not in ("scale", "translation", "identity") or len(step.get(kind, axes)) != len(
            axes
        ):
            raise VolumeFormatError(
                f"{place.address}: transformation {dict(step)} of level {name!r} is not understood; "
                f"wanted a scale or translation of {len(axes)} numbers"
            )
        if kind == "scale":
            scaled = True
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, step["scale"], strict=True)]
        elif kind == "translation":
            translation = [a + b for a, b in zip(translation, step["translation"], strict=True)]
    if unit_nm is None or not scaled:  # without a unit a scale says nothing in nanometres
        return Level(name, shape_vx, None), (0.0, 0.0, 0.0)
    size_nm = [scale[i] * u for i, u in zip(spatial, unit_nm, strict=True)]
    origin_nm = [translation[i] * u for i, u in zip(spatial, unit_nm, strict=True)]
    here = f"{place.address}, level {name!r}"
    return Level(name, shape_vx, voxel_size(here, size_nm)), first_voxel(here, origin_nm)

"""Neuroglancer's precomputed format, and any array that is read through tensorstore.

Precomputed places corners of voxels, this package their centres. The frame is chosen so that the
finest level begins at its `voxel_offset` times its voxel size, as an OME-Zarr copy of it would.
https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from em_data.errors import VolumeFormatError, VolumeNotFoundError, VolumeReadError
from em_data.formats.axes import Wanted, first_voxel, nearest_level, pick_axes, voxel_size
from em_data.formats.metadata import below, listed, understood
from em_data.formats.npy import PerProcess
from em_data.formats.optional import ForkGuard, import_extra
from em_data.geometry import Float3, int3
from em_data.volume import Level, Volume, as_volume

SCHEME = "precomputed://"
GUARD = ForkGuard("tensorstore")
# Enough requests in flight for a server far away, and an answer in seconds where there is none.
_RETRIES = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "5s"}
CONTEXT = {
    **{f"{kind}_request_retries": _RETRIES for kind in ("http", "gcs", "s3")},
    **{f"{kind}_request_concurrency": {"limit": 64} for kind in ("http", "gcs", "s3")},
}


def key_value_url(address: str) -> str:
    """What tensorstore calls the place: a URL ending in a slash.

    >>> key_value_url("https://host/volume"), key_value_url("/data/volume")
    ('https://host/volume/', 'file:///data/volume/')
    """
    url = address if "://" in address else f"file://{Path(address).absolute()}"
    return f"{url.rstrip('/')}/"


def read_json(url: str, name: str) -> dict[str, Any] | None:
    """The JSON file `name` at `url`, None where there is none."""
    tensorstore = import_extra("tensorstore", "tensorstore", "precomputed and N5 volumes")
    GUARD.enter()
    local = Path(f"{url.removeprefix('file://')}{name}") if url.startswith("file://") else None
    if local is not None and local.exists() and not local.is_file():
        raise VolumeFormatError(
            f"{local} is a folder, a pipe or a device; wanted a file: restore it"
        )
    try:
        answer = tensorstore.KvStore.open(url, context=tensorstore.Context(CONTEXT)).result()
        answer = answer.read(name).result()
    except (ValueError, OSError) as error:
        raise VolumeReadError(
            f"{url}{name} cannot be fetched: {_short(error)}; check the address, the network, the "
            "server and your credentials"
        ) from error
    if answer.state != "value":
        return None
    try:
        described = json.loads(answer.value)
    except (ValueError, RecursionError) as error:
        raise VolumeFormatError(f"{url}{name} is no JSON ({error}); restore it") from error
    if not isinstance(described, dict):
        raise VolumeFormatError(f"{url}{name} holds {type(described).__name__}; wanted an object")
    return described


def _short(error: Exception) -> str:
    """tensorstore appends its whole state in brackets."""
    return str(error).partition(" [")[0]


@dataclass(frozen=True)
class TensorStoreArray:
    """An array that tensorstore reads, with its axes in C order; each process opens its own."""

    opened: PerProcess[Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    compression: str

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        GUARD.enter()
        try:
            view = self.opened.get()[index]
            np.empty(view.shape, self.dtype)  # tensorstore ends the process where memory is out
            return np.asarray(view.read().result())
        except (ValueError, OSError) as error:
            raise VolumeReadError(
                f"{_short(error)}; restore this file, or delete it to read the fill value there"
            ) from error


def tensorstore_array(spec: Mapping[str, Any], compression: str) -> TensorStoreArray:
    """The array that a tensorstore spec describes, its axes reversed from (x, y, z, …)."""
    opened: PerProcess[Any] = PerProcess(partial(_open, json.dumps(spec)))
    GUARD.enter()
    try:
        array = opened.get()
    except (ValueError, OSError) as error:
        raise VolumeFormatError(
            f"{spec['kvstore']}: its metadata is not understood by tensorstore: {_short(error)}; "
            "repair it"
        ) from error
    chunk = tuple(array.chunk_layout.read_chunk.shape)
    shard = tuple(array.chunk_layout.write_chunk.shape)
    dtype = np.dtype(array.dtype.numpy_dtype)
    return TensorStoreArray(
        opened, tuple(array.shape), dtype, chunk, shard if shard != chunk else None, compression
    )


def _open(spec: str) -> Any:
    tensorstore = import_extra("tensorstore", "tensorstore", "precomputed and N5 volumes")
    context = tensorstore.Context(CONTEXT)
    opened = tensorstore.open(json.loads(spec), context=context, open=True, read=True).result()
    return opened[tensorstore.d[:].translate_to[0]].transpose()


def open_precomputed(address: str, wanted: Wanted) -> Volume:
    """The precomputed volume at a URL that tensorstore knows, or in a folder."""
    url = key_value_url(address)
    info = read_json(url, "info")
    if info is None:
        raise VolumeNotFoundError(
            f"no precomputed volume at {url}: it has no file 'info'; check the address"
        )
    with understood(f"{url}info"):
        if info.get("@type", "neuroglancer_multiscale_volume") != "neuroglancer_multiscale_volume":
            raise VolumeFormatError(f"{url}info is of type {info['@type']}; wanted a volume")
        scales = listed(f"{url}info: 'scales'", info["scales"])
        base = scales[0]["resolution"][::-1]
        levels = tuple(_level(url, scale) for scale in scales)
        chosen = nearest_level(address, levels, wanted.at_nm)
        origin = _origin(url, scales[chosen], base)
        compression = str(scales[chosen]["encoding"])
    spec = {"driver": "neuroglancer_precomputed", "kvstore": url, "scale_index": chosen}
    array = pick_axes(tensorstore_array(spec, compression), "czyx", address, wanted)
    return replace(
        as_volume(array, address, "precomputed"),
        voxel_size_nm=levels[chosen].voxel_size_nm,
        origin_nm=origin,
        levels=levels,
        level=chosen,
    )


def _level(url: str, scale: Mapping[str, Any]) -> Level:
    size = voxel_size(f"{url}info", [float(r) for r in scale["resolution"][::-1]])
    key = below(f"{url}info: the key of a scale", scale["key"])
    return Level(key, int3(scale["size"][::-1]), size)


def _origin(url: str, scale: Mapping[str, Any], base: Sequence[float]) -> Float3:
    offset = scale.get("voxel_offset", (0, 0, 0))[::-1]
    size = scale["resolution"][::-1]
    corner = [(o + 0.5) * s - 0.5 * b for o, s, b in zip(offset, size, base, strict=True)]
    return first_voxel(f"{url}info", corner)

"""A sound volume, written by hand: no library would write what is changed in it elsewhere.

Twelve slices of 96 × 96 voxels of 8 nm in eight chunks, as zarr v3 with OME-NGFF 0.5 around it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHAPE, CHUNK, SIZE_NM = (12, 96, 96), (6, 48, 48), (8.0, 8.0, 8.0)
Change = Callable[[dict[str, Any]], None]


def grey(shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint8) -> np.ndarray:
    """Blobs and noise: something that can be learned from, the same every time."""
    rng = np.random.default_rng(7)
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
    waves = np.asarray(sum(np.sin(a / (3 + i)) for i, a in enumerate(axes)))
    scaled = 110 + 30 * waves + 15 * rng.standard_normal(shape)
    return np.clip(scaled, 0, 255).astype(dtype)


def array_meta(voxels: np.ndarray) -> dict[str, Any]:
    """What zarr v3 says of an array without compression."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(voxels.shape),
        "data_type": voxels.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(CHUNK)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }


def image_meta(origin_nm: Any = (0.0, 0.0, 0.0), size_nm: Any = SIZE_NM) -> dict[str, Any]:
    """What OME-NGFF 0.5 says of an image of one level."""
    placed = [
        {"type": "scale", "scale": list(size_nm)},
        {"type": "translation", "translation": list(origin_nm)},
    ]
    multiscale = {
        "name": "image",
        "axes": [{"name": n, "type": "space", "unit": "nanometer"} for n in "zyx"],
        "datasets": [{"path": "0", "coordinateTransformations": placed}],
    }
    return {"version": "0.5", "multiscales": [multiscale]}


def write_array(at: Path, voxels: np.ndarray, change: Change | None = None) -> None:
    """An array, its description changed."""
    at.mkdir(parents=True, exist_ok=True)
    described = array_meta(voxels)
    if change:
        change(described)
    (at / "zarr.json").write_text(json.dumps(described))
    for place in itertools.product(
        *(range(math.ceil(n / c)) for n, c in zip(voxels.shape, CHUNK, strict=True))
    ):
        chunk = np.zeros(CHUNK, voxels.dtype)
        here = tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, CHUNK, strict=True))
        part = voxels[here]
        chunk[tuple(slice(n) for n in part.shape)] = part
        file = at / "c" / "/".join(map(str, place))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(chunk.tobytes())


def write_image(
    at: Path,
    voxels: np.ndarray | None = None,
    *,
    ome: Change | None = None,
    array: Change | None = None,
    labels: np.ndarray | None = None,
) -> Path:
    """An OME-Zarr image, its description or that of its array changed; `labels` become `classes`."""
    at.mkdir(parents=True)
    described = image_meta()
    if ome:
        ome(described)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": described}}
    (at / "zarr.json").write_text(json.dumps(group))
    write_array(at / "0", grey() if voxels is None else voxels, array)
    if labels is not None:
        write_labels(at, ["classes"])
        named = {"version": "0.5", "image-label": {"source": {"image": "../../"}}}
        write_image(at / "labels" / "classes", labels, ome=lambda d: d.update(named))
    return at


def write_labels(at: Path, names: Any) -> None:
    """The list of label images beside an image."""
    (at / "labels").mkdir(exist_ok=True)
    listed = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"labels": names}}}
    (at / "labels" / "zarr.json").write_text(json.dumps(listed))


def truth() -> np.ndarray:
    """Classes 0, 1 and 2 in every slice, on the grid of `grey`."""
    values = grey().astype(np.float32)
    return np.digitize(values, np.quantile(values, [0.4, 0.7])).astype(np.uint8)

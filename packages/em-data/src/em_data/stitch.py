"""Write OME-Zarr 0.5 block by block: a store is either whole under its name or not there at all.

Everything is written into a hidden sibling folder and renamed when the last block is in, so an
interrupted run never leaves something that looks like a finished volume.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from em_data.errors import BoxError, StoreExistsError
from em_data.geometry import Box, Float3, Int3, check_inside, int3, tiles

CHUNK_VX: Int3 = (32, 128, 128)  # 512 KiB of uint8: small enough to look at, large enough to stream


@dataclass(frozen=True)
class Image:
    """One image of a store that is being written."""

    group: zarr.Group
    array: zarr.Array[Any]
    voxel_size_nm: Float3
    origin_nm: Float3
    is_label: bool

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write the voxels of `box`; boxes that share a chunk must not be written at once."""
        shape = int3(self.array.shape)
        check_inside(box, shape, "block")
        if voxels.shape != box.size_vx:
            raise BoxError(f"block of shape {voxels.shape} does not fill box of size {box.size_vx}")
        self.array[box.slices] = voxels


class Store:
    """The images of one OME-Zarr store: the raw voxels at its root, labels under `labels/`."""

    def __init__(self, path: Path) -> None:
        self.root = zarr.open_group(path, mode="w", zarr_format=3)
        self.images: list[Image] = []

    def add_image(
        self,
        shape: Int3,
        dtype: np.dtype[Any] | type,
        voxel_size_nm: Float3,
        *,
        origin_nm: Float3 = (0.0, 0.0, 0.0),
        label: str | None = None,
        chunk_vx: Int3 = CHUNK_VX,
    ) -> Image:
        """Add the raw image, or with `label` a label image beside it."""
        group = self.root if label is None else self.root.require_group(f"labels/{label}")
        array = group.create_array(
            "s0",
            shape=shape,
            dtype=dtype,
            chunks=int3([min(c, n) for c, n in zip(chunk_vx, shape, strict=True)]),
            dimension_names=("z", "y", "x"),
        )
        image = Image(group, array, voxel_size_nm, origin_nm, label is not None)
        self.images.append(image)
        return image

    def finish(self) -> None:
        """Add the coarser levels and the metadata."""
        labels = []
        for image in self.images:
            add_pyramid(image)
            if image.is_label:
                labels.append(image.group.basename)
        if labels:
            self.root["labels"].attrs["ome"] = {"version": "0.5", "labels": labels}


@contextmanager
def new_store(path: str | Path, *, overwrite: bool = False) -> Iterator[Store]:
    """A store that appears at `path` when the block ends well, and not at all when it fails."""
    path = Path(path)
    check_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.building-{os.getpid()}")
    try:
        store = Store(building)
        yield store
        store.finish()
        check_free(path, overwrite=overwrite)  # it may have been taken meanwhile
        replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
        if path.exists():
            path.rename(replaced)
        building.rename(path)
        if replaced.is_dir():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.unlink(missing_ok=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a place that is taken."""
    if path.exists() and not overwrite:
        raise StoreExistsError(f"{path} exists already; choose another name, or pass overwrite")


def add_pyramid(image: Image, smallest_vx: int = 64) -> None:
    """Add levels of half the resolution until the longest side is at most `smallest_vx`.

    An axis is halved only while its voxels are not larger than those of the finest axis by more
    than √2, so anisotropic volumes approach cubes. Raw voxels are averaged, labels picked.
    """
    datasets = [_dataset("s0", image.voxel_size_nm, image.origin_nm)]
    size_nm, origin_nm, source = image.voxel_size_nm, image.origin_nm, image.array
    while max(source.shape) > smallest_vx:
        finest = min(s for s, n in zip(size_nm, source.shape, strict=True) if n > 1)
        step = int3(
            [
                2 if n > 1 and s < finest * 2**0.5 else 1
                for s, n in zip(size_nm, source.shape, strict=True)
            ]
        )
        shape = int3([-(-n // k) for n, k in zip(source.shape, step, strict=True)])
        target = image.group.create_array(
            f"s{len(datasets)}",
            shape=shape,
            dtype=source.dtype,
            chunks=int3([min(c, n) for c, n in zip(source.chunks, shape, strict=True)]),
            dimension_names=("z", "y", "x"),
        )
        for box in tiles(shape, int3(target.chunks)):
            target[box.slices] = _halve(source, box, step, image.is_label)
        # An average lies in the middle of its voxels, a picked voxel where it was.
        if not image.is_label:
            shift = [(k - 1) / 2 * s for k, s in zip(step, size_nm, strict=True)]
            origin_nm = _add(origin_nm, shift)
        z, y, x = (s * k for s, k in zip(size_nm, step, strict=True))
        size_nm = (z, y, x)
        datasets.append(_dataset(f"s{len(datasets)}", size_nm, origin_nm))
        source = target
    ome: dict[str, Any] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": image.group.basename or "image",
                "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"],
                "datasets": datasets,
            }
        ],
    }
    if image.is_label:
        ome["image-label"] = {"source": {"image": "../../"}}
    image.group.attrs["ome"] = ome


def _halve(source: zarr.Array[Any], box: Box, step: Int3, pick: bool) -> np.ndarray:
    stops = zip(box.origin_vx, box.size_vx, step, source.shape, strict=True)
    region = tuple(slice(o * k, min((o + s) * k, n)) for o, s, k, n in stops)
    fine = np.asarray(source[region])
    if pick:
        return fine[:: step[0], :: step[1], :: step[2]]
    missing = [(0, s * k - n) for s, k, n in zip(box.size_vx, step, fine.shape, strict=True)]
    fine = np.pad(fine, missing, mode="edge")
    z, y, x = box.size_vx
    cells = fine.reshape(z, step[0], y, step[1], x, step[2]).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.rint(cells).astype(source.dtype)


def _dataset(path: str, size_nm: Float3, origin_nm: Float3) -> dict[str, Any]:
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": list(size_nm)},
            {"type": "translation", "translation": list(origin_nm)},
        ],
    }


def _add(a: Float3, b: list[float]) -> Float3:
    z, y, x = (p + q for p, q in zip(a, b, strict=True))
    return z, y, x

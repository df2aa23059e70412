"""Write OME-Zarr 0.5: a store is either whole under its name or not there at all.

`new_store` is for what one process writes in one go: everything goes into a hidden sibling folder
that is renamed when the last voxel is in. What takes hours, or many processes, is written by
`em_data.writer.blockwise` in the same format.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from em_data.errors import BoxError
from em_data.geometry import Box, Float3, Int3, check_inside, int3, tiles
from em_data.writer.place import check_apart, check_free
from em_data.writer.pyramid import PlannedLevel, Pool, plan_levels, pool_voxels

CHUNK_VX: Int3 = (32, 128, 128)  # 512 KiB of uint8: small enough to look at, large enough to stream


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """One image of a store: what it holds and how it is stored."""

    shape_vx: Int3
    """Voxels along (z, y, x)."""
    dtype: str
    """Type of the voxels, as numpy names it."""
    voxel_size_nm: Float3 | None
    """Size of a voxel; None where it is not known, then the store does not say either."""
    origin_nm: Float3 = (0.0, 0.0, 0.0)
    """Centre of voxel (0, 0, 0)."""
    label: str | None = None
    """Name of a label image under `labels/`; None is the image of the store itself."""
    channels: tuple[str, ...] = ()
    """Names of the channels of an image (C, z, y, x); none for one along (z, y, x)."""
    classes: tuple[str, ...] = ()
    """Names of the values 0, 1, … of a label image or class map."""
    colours: tuple[Int3, ...] = ()
    """RGB of each channel or class, 0 to 255; viewers choose where there are none. A black class is
    not shown."""
    pool: Pool = "mean"
    """How voxels become one of the next level: `mean` for images, `mode` or `pick` for labels."""
    chunk_vx: Int3 = CHUNK_VX
    """Voxels that are encoded together, of one channel."""
    shard_vx: Int3 | None = None
    """Voxels of one file with all their channels, whole chunks; None: every chunk is a file."""

    def __post_init__(self) -> None:
        for name in ("channels", "classes"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} are {getattr(self, name)}; wanted different names")
        named = self.channels or self.classes
        if self.channels and (self.classes or self.label is not None):
            raise ValueError("an image has channels, or it is a label image; it cannot be both")
        if self.colours and len(self.colours) != len(named):
            raise ValueError(
                f"{len(self.colours)} colours for {len(named)} channels or classes; wanted one each"
            )
        size_nm, origin_nm = self.voxel_size_nm or (1.0, 1.0, 1.0), self.origin_nm
        if not all(0 < s < math.inf for s in size_nm) or not all(map(math.isfinite, origin_nm)):
            raise ValueError(
                f"voxels of {self.voxel_size_nm} nm from {origin_nm} nm; wanted finite numbers, sizes "
                "above 0: JSON has no others"
            )
        if min(self.chunk_vx) < 1 or min(self.shape_vx) < 1:
            raise BoxError(f"chunk {self.chunk_vx} of volume {self.shape_vx} is empty")
        if self.shard_vx and any(s % c for s, c in zip(self.shard_vx, self.chunk_vx, strict=True)):
            raise BoxError(
                f"shard {self.shard_vx} does not hold whole chunks of {self.chunk_vx}; "
                "give a multiple of the chunk"
            )

    @property
    def path(self) -> str:
        """Where the image lies in the store; empty for the store itself."""
        return "" if self.label is None else f"labels/{self.label}"

    @property
    def is_label(self) -> bool:
        """Whether values are names instead of measurements."""
        return self.label is not None or bool(self.classes)

    @property
    def file_vx(self) -> Int3:
        """Voxels that one file holds: what only one writer may write at once."""
        return self.shard_vx or self.chunk_vx


class Image:
    """One image of a store that is being written, with all its levels."""

    def __init__(self, root: zarr.Group, config: ImageConfig, *, create: bool) -> None:
        self.config = config
        size_nm = config.voxel_size_nm or (1.0, 1.0, 1.0)
        self.levels = plan_levels(config.shape_vx, size_nm, config.origin_nm, config.pool)
        self.group = root.require_group(config.path) if create and config.path else root
        if not create and config.path:
            group = root[config.path]
            assert isinstance(group, zarr.Group)
            self.group = group
        make = self._create if create else self._open
        self.arrays = [make(f"s{number}", level) for number, level in enumerate(self.levels)]

    def _create(self, name: str, level: PlannedLevel) -> zarr.Array[Any]:
        config = self.config
        chunk = int3([min(c, n) for c, n in zip(config.chunk_vx, level.shape, strict=True)])
        shard: tuple[int, ...] | None = None
        if config.shard_vx:  # no larger than the level, in whole chunks
            shard = tuple(
                -(-min(s, n) // c) * c
                for s, n, c in zip(config.shard_vx, level.shape, chunk, strict=True)
            )
        count = (len(config.channels),) if config.channels else ()
        return self.group.create_array(
            name,
            shape=count + level.shape,
            dtype=config.dtype,
            chunks=(1,) * len(count) + chunk,
            shards=shard and count + shard,
            dimension_names=("c",) * len(count) + ("z", "y", "x"),
            config={"write_empty_chunks": True},
        )

    def _open(self, name: str, level: PlannedLevel) -> zarr.Array[Any]:
        # What is not there was never written: every chunk is, even when it holds nothing but zeros.
        path = f"{self.group.path}/{name}".lstrip("/")
        with zarr.config.set(
            {"array.write_empty_chunks": True}
        ):  # open_array takes no heed of `config`
            return zarr.open_array(self.group.store, path=path, mode="r+")

    def write(self, box: Box, voxels: np.ndarray, level: int = 0) -> None:
        """Write the voxels of `box`; boxes that share a file must not be written at once."""
        check_inside(box, self.levels[level].shape, "block")
        wanted = (len(self.config.channels),) * bool(self.config.channels) + box.size_vx
        if voxels.shape != wanted:
            raise BoxError(f"block of shape {voxels.shape} does not fill box of size {wanted}")
        if not np.can_cast(voxels.dtype, self.config.dtype):
            raise ValueError(
                f"block of {voxels.dtype} for an image of {self.config.dtype}; convert it first"
            )
        self.arrays[level][(..., *box.slices)] = voxels

    def read(self, box: Box, level: int = 0) -> np.ndarray:
        """The voxels of `box` with all channels."""
        return np.asarray(self.arrays[level][(..., *box.slices)])

    def source(self, box: Box, level: int) -> Box:
        """The voxels of the level before that `box` is pooled from."""
        step, shape = self.levels[level].step, self.levels[level - 1].shape
        origin = [o * k for o, k in zip(box.origin_vx, step, strict=True)]
        size = [
            min(s * k, n - o) for s, k, n, o in zip(box.size_vx, step, shape, origin, strict=True)
        ]
        return Box(int3(origin), int3(size))

    def coarsen(self, voxels: np.ndarray, level: int) -> np.ndarray:
        """Voxels of a level, pooled from those of the level before."""
        return pool_voxels(voxels, self.levels[level].step, self.config.pool)

    def describe(self) -> None:
        """Write the metadata that make the arrays an image."""
        config = self.config
        count = len(config.channels)
        unit = {"unit": "nanometer"} if config.voxel_size_nm else {}
        axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] * bool(count)
        axes += [{"name": axis, "type": "space", **unit} for axis in "zyx"]
        datasets = [
            {
                "path": f"s{number}",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0] * bool(count) + [*level.voxel_size_nm]},
                    {
                        "type": "translation",
                        "translation": [0.0] * bool(count) + [*level.origin_nm],
                    },
                ],
            }
            for number, level in enumerate(self.levels)
        ]
        name = config.label or "image"
        multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": config.pool}
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [multiscale]}
        if count:
            ome["omero"] = {"channels": [self._channel(number) for number in range(count)]}
        if config.is_label:
            ome["image-label"] = self._image_label()
        self.group.attrs["ome"] = ome

    def _channel(self, number: int) -> dict[str, Any]:
        dtype = np.dtype(self.config.dtype)
        top = float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
        red, green, blue = self.config.colours[number] if self.config.colours else (255, 255, 255)
        return {
            "label": self.config.channels[number],
            "color": f"{red:02X}{green:02X}{blue:02X}",
            "active": True,
            "window": {"min": 0.0, "max": top, "start": 0.0, "end": top},
        }

    def _image_label(self) -> dict[str, Any]:
        config = self.config
        about: dict[str, Any] = {}
        if config.colours:  # black is what is left over: nothing to see
            about["colors"] = [
                {"label-value": value, "rgba": [*colour, 255 if any(colour) else 0]}
                for value, colour in enumerate(config.colours)
            ]
        if config.classes:
            about["properties"] = [
                {"label-value": value, "name": name} for value, name in enumerate(config.classes)
            ]
        if config.label is not None:
            about["source"] = {"image": "../../"}
        return about


class Store:
    """The images of one OME-Zarr store: the raw voxels at its root, labels under `labels/`."""

    def __init__(self, path: Path) -> None:
        self.root = zarr.open_group(path, mode="w", zarr_format=3)
        self.images: list[Image] = []

    def add_image(
        self,
        shape: Int3,
        dtype: np.dtype[Any] | type | str,
        voxel_size_nm: Float3 | None,
        *,
        origin_nm: Float3 = (0.0, 0.0, 0.0),
        label: str | None = None,
        pool: Pool | None = None,
        channels: Sequence[str] = (),
        classes: Sequence[str] = (),
        colours: Sequence[Int3] = (),
        chunk_vx: Int3 = CHUNK_VX,
        shard_vx: Int3 | None = None,
    ) -> Image:
        """Add the raw image, or with `label` a label image beside it; see `ImageConfig`.

        Without `pool`, images are averaged and labels picked.
        """
        config = ImageConfig(
            shape_vx=int3(shape),
            dtype=np.dtype(dtype).name,
            voxel_size_nm=voxel_size_nm,
            origin_nm=origin_nm,
            label=label,
            channels=tuple(channels),
            classes=tuple(classes),
            colours=tuple(colours),
            pool=pool or ("pick" if label is not None or classes else "mean"),
            chunk_vx=chunk_vx,
            shard_vx=shard_vx,
        )
        image = Image(self.root, config, create=True)
        self.images.append(image)
        return image

    def finish(self) -> None:
        """Add the coarser levels and the metadata."""
        for image in self.images:
            for number, level in enumerate(image.levels[1:], 1):
                file_vx = [
                    min(f, n) for f, n in zip(image.config.file_vx, level.shape, strict=True)
                ]
                for box in tiles(level.shape, int3(file_vx)):
                    fine = image.read(image.source(box, number), number - 1)
                    image.write(box, image.coarsen(fine, number), number)
        write_metadata(self.root, self.images)


def write_metadata(root: zarr.Group, images: Sequence[Image]) -> None:
    """Write the metadata of all images; from then on readers take the store for an image."""
    for image in images:
        image.describe()
    labels = [image.config.label for image in images if image.config.label is not None]
    if labels:
        root["labels"].attrs["ome"] = {"version": "0.5", "labels": labels}


@contextmanager
def new_store(
    path: str | Path, *, overwrite: bool = False, inputs: Iterable[str | Path] = ()
) -> Iterator[Store]:
    """A store that appears at `path` when the block ends well, and not at all when it fails.

    With `overwrite` it takes the place of a zarr store that is there, when it is whole. The inputs,
    addresses of what is read, are never replaced, nor written into.
    """
    check_apart(path, inputs)
    path = Path(path)
    check_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.building-{os.getpid()}")
    try:
        store = Store(building)
        yield store
        store.finish()
        put_in_place(building, path, overwrite=overwrite)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(building: Path, path: Path, *, overwrite: bool) -> None:
    """Give a finished store its name."""
    check_free(path, overwrite=overwrite)  # it may have been taken meanwhile
    replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    if path.exists():
        path.rename(replaced)
    try:
        building.rename(path)
    except OSError:
        if replaced.exists():
            replaced.rename(path)
        raise
    shutil.rmtree(replaced, ignore_errors=True)

"""Turn an address into a `Volume`: one small reader per format, and `open_volume` that chooses.

| address | format |
|---|---|
| a folder with OME-NGFF metadata, 0.4 (zarr v2) or 0.5 (zarr v3, sharded or not) | OME-Zarr |
| a folder that is a zarr array | zarr, no physical units |
| a file ending in `.npy` | numpy, memory-mapped |
| a numpy array | itself |
| `synthetic:` or `synthetic:shape=64x384x384,seed=1` | `em_data.synthetic`, rendered on reading |
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors

from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.geometry import NANOMETRES, Float3, Int3, float3, int3
from em_data.synthetic import SyntheticConfig, render
from em_data.volume import Level, Volume

SYNTHETIC = "synthetic:"


def open_volume(
    source: str | Path | np.ndarray,
    *,
    at_nm: Float3 | None = None,
    voxel_size_nm: Float3 | None = None,
    origin_nm: Float3 | None = None,
) -> Volume:
    """Open a volume lazily, whatever its format.

    Args:
        source: an address (table above) or an array.
        at_nm: wanted voxel size; the level whose voxels are nearest to it (in log size) is opened.
            Without it, the finest level.
        voxel_size_nm: voxel size, for files that do not say; it overrides what the file says.
        origin_nm: position of the centre of voxel (0, 0, 0), likewise.

    >>> volume = open_volume(np.zeros((4, 8, 8), np.uint8), voxel_size_nm=(40, 4, 4))
    >>> volume.shape, int(volume[1:3, 0:2, 0:2].sum())
    ((4, 8, 8), 0)
    """
    if isinstance(source, np.ndarray):
        volume = _from_array(source, "array in memory", "numpy")
    elif str(source).startswith(SYNTHETIC):
        volume = _open_synthetic(str(source))
    else:
        volume = _open_path(Path(source), at_nm)
    if voxel_size_nm is not None:
        volume = replace(volume, voxel_size_nm=float3(voxel_size_nm))
    if origin_nm is not None:
        volume = replace(volume, origin_nm=float3(origin_nm))
    return volume


def _open_path(path: Path, at_nm: Float3 | None) -> Volume:
    if not path.exists():
        raise VolumeNotFoundError(
            f"no volume at {path}: nothing is there; check the path "
            f"(the current folder is {Path.cwd()})"
        )
    if path.is_file():
        if path.suffix == ".npy":
            return _open_npy(path)
        raise VolumeFormatError(
            f"{path} is a file of no known volume format; "
            "wanted an OME-Zarr or zarr folder, or a .npy file"
        )
    try:
        node = zarr.open(path, mode="r")
    except (zarr.errors.BaseZarrError, FileNotFoundError, ValueError, KeyError) as error:
        raise VolumeFormatError(
            f"{path} is a folder, but neither zarr v2 nor v3 metadata in it can be read "
            f"({type(error).__name__}: {error}); wanted an OME-Zarr or zarr folder"
        ) from error
    if isinstance(node, zarr.Array):
        return _from_array(node, str(path), f"zarr v{node.metadata.zarr_format}")
    return _open_ome_zarr(path, node, at_nm)


def _from_array(array: Any, source: str, format: str) -> Volume:
    if len(array.shape) != 3 or not np.issubdtype(array.dtype, np.number):
        raise VolumeFormatError(
            f"{source} holds {array.dtype} of shape {tuple(array.shape)}; "
            "wanted numbers along three axes (z, y, x)"
        )
    if math.prod(array.shape) == 0:
        raise VolumeFormatError(f"{source} is empty: its shape is {tuple(array.shape)}")
    return Volume(array=array, source=source, format=format)


def _open_npy(path: Path) -> Volume:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise VolumeFormatError(
            f"{path} cannot be read as .npy ({error}); it may be truncated or of another format"
        ) from error
    return _from_array(array, str(path), "npy")


# OME-Zarr ----------------------------------------------------------------------------------------


def _open_ome_zarr(path: Path, group: zarr.Group, at_nm: Float3 | None) -> Volume:
    attributes: Mapping[str, Any] = dict(group.attrs)
    version = "0.5" if "ome" in attributes else "0.4"
    attributes = attributes.get("ome", attributes)
    if "multiscales" not in attributes:
        inside = ", ".join(sorted(group.keys())) or "nothing"
        raise VolumeFormatError(
            f"{path} is a zarr group without OME-NGFF 'multiscales' metadata; "
            f"name one of the arrays or images in it ({inside})"
        )
    multiscale = attributes["multiscales"][0]
    levels = tuple(_level(path, group, multiscale, dataset) for dataset in multiscale["datasets"])
    chosen = _nearest_level(path, [level for level, _ in levels], at_nm)
    level, origin_nm = levels[chosen]
    names: tuple[str, ...] = ()
    if "labels" in group:
        stored: dict[str, Any] = dict(group["labels"].attrs)
        names = tuple(stored.get("ome", stored).get("labels", ()))
    volume = _from_array(group[level.path], str(path), f"OME-Zarr {version}")
    return replace(
        volume,
        voxel_size_nm=level.voxel_size_nm,
        origin_nm=origin_nm,
        levels=tuple(level for level, _ in levels),
        level=chosen,
        label_names=names,
        open_label=partial(_open_ome_label, path, at_nm),
    )


def _open_ome_label(path: Path, at_nm: Float3 | None, name: str) -> Volume:
    return _open_path(path / "labels" / name, at_nm)


def _level(
    path: Path, group: zarr.Group, multiscale: Mapping[str, Any], dataset: Mapping[str, Any]
) -> tuple[Level, Float3]:
    """One resolution with the position of its first voxel, in nanometres."""
    axes = [axis["name"] for axis in multiscale.get("axes", ())]
    if axes != ["z", "y", "x"]:
        raise VolumeFormatError(
            f"{path}: axes are {axes or 'missing'}; wanted ['z', 'y', 'x']: "
            "write one channel and one time point as an image of its own"
        )
    units = [axis.get("unit") for axis in multiscale["axes"]]
    unknown = [unit for unit in units if unit is not None and unit not in NANOMETRES]
    if unknown:
        raise VolumeFormatError(
            f"{path}: unknown unit {unknown[0]!r}; wanted one of {', '.join(NANOMETRES)}"
        )
    scale, translation = [1.0] * 3, [0.0] * 3
    # Transformations of a dataset come first, those of the whole image are applied to the result.
    for step in (
        *dataset.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if step["type"] == "scale":
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, step["scale"], strict=True)]
        elif step["type"] == "translation":
            translation = [a + b for a, b in zip(translation, step["translation"], strict=True)]
    name = str(dataset["path"])
    try:
        shape = int3(group[name].shape)  # type: ignore[union-attr]
    except (KeyError, ValueError) as error:
        raise VolumeFormatError(
            f"{path}: level {name!r} is named in the metadata but cannot be opened ({error})"
        ) from error
    if None in units:  # a scale without a unit says nothing in nanometres
        return Level(name, shape, None), (0.0, 0.0, 0.0)
    nm = [NANOMETRES[unit] for unit in units]
    size_nm = float3([s * u for s, u in zip(scale, nm, strict=True)])
    return Level(name, shape, size_nm), float3(
        [t * u for t, u in zip(translation, nm, strict=True)]
    )


def _nearest_level(path: Path, levels: list[Level], at_nm: Float3 | None) -> int:
    if at_nm is None:
        return 0
    distances = []
    for level in levels:
        if level.voxel_size_nm is None:
            raise VolumeFormatError(
                f"{path}: the axes carry no unit, so no level can be chosen at {at_nm} nm; "
                "open it without at_nm and give voxel_size_nm"
            )
        ratios = zip(level.voxel_size_nm, at_nm, strict=True)
        distances.append(sum(math.log(size / wanted) ** 2 for size, wanted in ratios))
    return distances.index(min(distances))


# Synthetic ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SyntheticArray:
    """A synthetic volume behind the face of an array: voxels are rendered when they are read."""

    config: SyntheticConfig
    layer: str = "raw"  # or "classes", "instances"

    @property
    def shape(self) -> Int3:
        """(z, y, x)"""
        return int3(self.config.shape_vx)

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 for raw and classes, uint32 for instances."""
        return np.dtype(np.uint32 if self.layer == "instances" else np.uint8)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        origin = int3([part.start for part in index])
        size = int3([part.stop - part.start for part in index])
        voxels: np.ndarray = getattr(render(self.config, origin, size), self.layer)
        return voxels


def _open_synthetic(address: str) -> Volume:
    config = _synthetic_config(address)
    return _synthetic_volume(address, config, "raw")


def _synthetic_volume(address: str, config: SyntheticConfig, layer: str) -> Volume:
    raw = layer == "raw"
    return Volume(
        array=SyntheticArray(config, layer),
        source=address,
        format="synthetic",
        voxel_size_nm=float3(config.voxel_size_nm),
        label_names=("classes", "instances") if raw else (),
        open_label=partial(_synthetic_volume, address, config) if raw else None,
    )


def _synthetic_config(address: str) -> SyntheticConfig:
    """Parse `synthetic:shape=64x384x384,voxel_nm=17.6x8x8,seed=1`; every part is optional."""
    settings: dict[str, Any] = {}
    for part in filter(None, address.removeprefix(SYNTHETIC).split(",")):
        key, _, value = part.partition("=")
        try:
            if key == "shape":
                settings["shape_vx"] = int3([int(n) for n in value.split("x")])
            elif key == "voxel_nm":
                settings["voxel_size_nm"] = float3([float(n) for n in value.split("x")])
            elif key == "seed":
                settings["seed"] = int(value)
            else:
                raise ValueError(key)
        except ValueError:
            raise VolumeFormatError(
                f"{address}: {part!r} is not understood; wanted for instance "
                "synthetic:shape=64x384x384,voxel_nm=17.6x8x8,seed=1"
            ) from None
    return SyntheticConfig(**settings)

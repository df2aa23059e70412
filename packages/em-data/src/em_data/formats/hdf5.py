"""HDF5: `file.h5::dataset`, or the file alone when it holds one 3D dataset.

Voxel sizes are read where the tools of the field write them: `element_size_um` (ilastik, Fiji) or
`resolution` in nm with `offset` in nm (CREMI), all (z, y, x), as attributes of the dataset; axes
from ilastik's `axistags`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.formats.axes import Wanted, pick_axes, voxel_size
from em_data.formats.npy import PerProcess
from em_data.formats.optional import import_extra
from em_data.geometry import Float3, float3
from em_data.volume import Volume, as_volume

LISTED = 20  # datasets named in a message at most


def open_hdf5(path: Path, dataset: str | None, wanted: Wanted) -> Volume:
    """A dataset of an HDF5 file."""
    h5py = import_extra("h5py", "hdf5", "HDF5 files")
    file: PerProcess[Any] = PerProcess(partial(_open_file, path))
    try:
        opened = file.get()
    except OSError as error:
        raise VolumeFormatError(
            f"{path} cannot be read as HDF5 ({error}); it may be truncated or still be written"
        ) from error
    names = _datasets(h5py, opened)
    if dataset is None:
        if len(names) != 1:
            raise VolumeFormatError(f"{path} holds {_listed(names, path)}")
        (dataset,) = names
    name = dataset.strip("/")
    source = f"{path}::{name}"
    stored = opened.get(name)
    if stored is None:
        raise VolumeNotFoundError(f"{path} has no {name!r}; it holds {_listed(names, path)}")
    if not isinstance(stored, h5py.Dataset):
        raise VolumeFormatError(f"{source} is a group; {path} holds {_listed(names, path)}")
    shape = stored.shape or ()
    array = HDF5Array(file, name, shape, stored.dtype, stored.chunks, _compression(stored))
    attributes = dict(stored.attrs)
    axes = _axes(attributes, len(shape), source)
    volume = as_volume(pick_axes(array, axes, source, wanted), source, "HDF5")
    size, origin = _size(source, attributes)
    return replace(volume, voxel_size_nm=size, origin_nm=origin)


def _open_file(path: Path) -> Any:
    h5py = import_extra("h5py", "hdf5", "HDF5 files")
    # Network file systems often have no locks, and reading needs none.
    return h5py.File(path, "r", locking="best-effort")


@dataclass(frozen=True)
class HDF5Array:
    """A dataset that every process opens for itself. h5py has a lock of its own for threads."""

    file: PerProcess[Any]
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    compression: str | None

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        voxels: np.ndarray = self.file.get()[self.name][index]
        return voxels


def _compression(stored: Any) -> str | None:
    """The filters by name, in the order in which they are applied."""
    filters = stored.id.get_create_plist()
    names = [filters.get_filter(i)[3].decode() for i in range(filters.get_nfilters())]
    return ", ".join(names) or None


def _datasets(h5py: Any, file: Any) -> list[str]:
    """Datasets of numbers with three axes or more."""
    found: list[str] = []

    def look(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and len(node.shape or ()) >= 3:
            found.append(name)

    file.visititems(look)
    return found


def _listed(names: Sequence[str], path: Path) -> str:
    if not names:
        return "no dataset with three axes; name another file"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (
        f"{len(names)} 3D dataset{'s' * (len(names) > 1)}: {', '.join(names[:LISTED])}{more}; "
        f"name one, as {path}::{names[0]}"
    )


def _axes(attributes: Mapping[str, Any], dimensions: int, source: str) -> Sequence[str]:
    if "axistags" in attributes:
        try:
            return [str(tag["key"]) for tag in json.loads(attributes["axistags"])["axes"]]
        except (ValueError, KeyError, TypeError) as error:
            raise VolumeFormatError(
                f"{source}: its attribute axistags cannot be read ({error}); repair or delete it"
            ) from error
    if dimensions != 3:
        raise VolumeFormatError(
            f"{source} has {dimensions} axes and no attribute axistags that names them; "
            "wanted (z, y, x): write one channel as a dataset of its own"
        )
    return "zyx"


def _size(source: str, attributes: Mapping[str, Any]) -> tuple[Float3 | None, Float3]:
    """Voxel size and origin, where three numbers are stated."""
    for name, unit_nm in (("element_size_um", 1e3), ("resolution", 1.0)):
        numbers = np.asarray(attributes.get(name, ()))
        if numbers.shape == (3,):
            size = voxel_size(source, [float(n) * unit_nm for n in numbers])
            offset = np.asarray(attributes.get("offset", ()))
            placed = name == "resolution" and offset.shape == (3,)
            return size, float3(offset.tolist()) if placed else (0.0, 0.0, 0.0)
    return None, (0.0, 0.0, 0.0)

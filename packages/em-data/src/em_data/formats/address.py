"""Turn an address into a `Volume`: `open_volume` looks what lies there and calls its reader.

| address | format | extra |
|---|---|---|
| a folder with OME-NGFF metadata, 0.4 (zarr v2) or 0.5 (zarr v3, sharded or not) | OME-Zarr | |
| a folder that is a zarr array | zarr, no physical units | |
| `file.h5::dataset`, or the file alone when one 3D dataset is in it | HDF5 | `hdf5` |
| a TIFF file, or a folder of TIFF or PNG slices | slices | `tiff` |
| a `.npy` file | numpy, memory-mapped | |
| a numpy array | itself | |
| `http(s)://…`, `s3://…`, `gs://…` | zarr as above, from a server | `remote` |
| `precomputed://…` before a URL or path, a folder with `info` | precomputed | `tensorstore` |
| `n5://…` before a URL or path, a folder with `attributes.json` | N5 | `tensorstore` |
| `synthetic:` or `synthetic:shape=64x384x384,seed=1` | `em_data.synthetic`, rendered on reading | |

Files are told apart by their first bytes, not by their names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.formats import n5, precomputed, remote
from em_data.formats.axes import Wanted, check_choice, voxel_size
from em_data.formats.hdf5 import open_hdf5
from em_data.formats.location import Place
from em_data.formats.npy import open_npy
from em_data.formats.ome_zarr import MARKERS, open_zarr
from em_data.formats.slices import PNG_START, open_slices, open_tiff, slice_files
from em_data.geometry import Float3, float3
from em_data.synthetic.volume import SYNTHETIC, open_synthetic
from em_data.volume import Volume, as_volume

HDF5_START = b"\x89HDF\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, plain and BigTIFF
NPY_START = b"\x93NUMPY"
KNOWN = "an OME-Zarr, zarr, N5 or precomputed folder, a folder of slices, HDF5, TIFF or .npy"


def open_volume(
    source: str | Path | np.ndarray,
    *,
    at_nm: Float3 | None = None,
    channel: int | str | None = None,
    time: int | None = None,
    voxel_size_nm: Float3 | None = None,
    origin_nm: Float3 | None = None,
) -> Volume:
    """Open a volume lazily, whatever its format.

    Args:
        source: an address (table above) or an array.
        at_nm: wanted voxel size; the level whose voxels are nearest to it (in log size) is opened.
            Without it, the finest level. `Volume.level` says which.
        channel: which channel, by number or by the name in the metadata, where there are several.
        time: which time point, likewise.
        voxel_size_nm: voxel size, for files that do not say; it overrides what the file says.
        origin_nm: position of the centre of voxel (0, 0, 0), likewise.

    >>> volume = open_volume(np.zeros((4, 8, 8), np.uint8), voxel_size_nm=(40, 4, 4))
    >>> volume.shape, int(volume[1:3, 0:2, 0:2].sum())
    ((4, 8, 8), 0)
    """
    wanted = Wanted(None if at_nm is None else voxel_size("at_nm", at_nm), channel, time)
    if isinstance(source, np.ndarray):
        native = source.astype(source.dtype.newbyteorder("="), copy=False)
        volume = as_volume(native, "array in memory", "numpy")
        check_choice(volume.source, "zyx", wanted)
    else:
        volume = _open_address(str(source), wanted)
    if voxel_size_nm is not None:
        volume = replace(volume, voxel_size_nm=voxel_size("voxel_size_nm", voxel_size_nm))
    if origin_nm is not None:
        volume = replace(volume, origin_nm=float3(origin_nm))
    return volume


def _open_address(address: str, wanted: Wanted) -> Volume:
    if address.startswith(SYNTHETIC):
        check_choice(address, "zyx", wanted)
        return open_synthetic(address)
    for scheme, open_it in (
        (precomputed.SCHEME, precomputed.open_precomputed),
        (n5.SCHEME, n5.open_n5),
    ):
        if address.startswith(scheme):
            volume = open_it(address.removeprefix(scheme), wanted)
            return replace(volume, source=address)
    if remote.is_remote(address):
        return _open_folder(Place(address.rstrip("/")), wanted)
    if "://" in address:
        raise VolumeFormatError(
            f"{address}: its scheme is unknown; wanted {', '.join(remote.SCHEMES)}, "
            f"{precomputed.SCHEME}, {n5.SCHEME} or a path"
        )
    name, separator, dataset = address.partition("::")
    path = Path(name)
    if not path.exists():
        raise VolumeNotFoundError(
            f"no volume at {path}: nothing is there; check the path "
            f"(the current folder is {Path.cwd()})"
        )
    if path.is_file():
        return _open_file(path, dataset if separator else None, wanted)
    return _open_folder(Place(name), wanted)


def _open_file(path: Path, dataset: str | None, wanted: Wanted) -> Volume:
    with path.open("rb") as file:
        start = file.read(8)
    if start == HDF5_START:
        return open_hdf5(path, dataset, wanted)
    if dataset is not None:
        raise VolumeFormatError(f"{path} is no HDF5 file, so it has no dataset {dataset!r}")
    if start.startswith(NPY_START):
        check_choice(str(path), "zyx", wanted)
        return open_npy(path)
    if start.startswith(TIFF_STARTS):
        return open_tiff(path, wanted)
    if start == PNG_START:
        raise VolumeFormatError(f"{path} is one slice; give the folder that holds all of them")
    raise VolumeFormatError(
        f"{path} is a file of no known volume format (its first bytes are {start!r}); wanted {KNOWN}"
    )


def _open_folder(place: Place, wanted: Wanted) -> Volume:
    found = place.found((*MARKERS, "info", n5.ATTRIBUTES))
    if found & set(MARKERS):
        return open_zarr(place, found, wanted)
    if "info" in found:
        return precomputed.open_precomputed(place.address, wanted)
    if n5.ATTRIBUTES in found:
        return n5.open_n5(place.address, wanted)
    if place.is_remote:
        raise VolumeNotFoundError(
            f"no volume at {place.address}: there is none of {', '.join(MARKERS)}, info and "
            f"{n5.ATTRIBUTES}; check the address"
        )
    files = slice_files(Path(place.address))
    if files:
        return open_slices(Path(place.address), files, wanted)
    raise VolumeFormatError(
        f"{place.address} is a folder, but neither zarr metadata nor slices are in it; "
        f"wanted {KNOWN}"
    )


# Synthetic ---------------------------------------------------------------------------------------

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
| `images:FOLDER` | many volumes: `open_images` opens them | `tiff` |
| `synthetic:` or `synthetic:shape=64x384x384,seed=1` | `em_data.synthetic`, rendered on reading | |

Files are told apart by their first bytes, not by their names. What a file does not say itself the
address may say after `?` (`formats/options.py`): `stack.tif?voxel_nm=50,4,4`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from em_data.errors import VolumeFormatError, VolumeNotFoundError
from em_data.formats import n5, precomputed, remote
from em_data.formats.axes import Gaps, Wanted, check_choice, first_voxel, voxel_size
from em_data.formats.hdf5 import open_hdf5
from em_data.formats.images import SCHEME as IMAGES
from em_data.formats.location import Place
from em_data.formats.metadata import understood
from em_data.formats.npy import open_npy
from em_data.formats.ome_zarr import MARKERS, open_zarr
from em_data.formats.options import check_options, gaps_of, split_options, voxel_nm
from em_data.formats.slices import PNG_START, open_slices, open_tiff, slice_files
from em_data.geometry import Float3
from em_data.synthetic.volume import SYNTHETIC, open_synthetic
from em_data.volume import Volume, as_volume

HDF5_START = b"\x89HDF\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little and big endian, plain and BigTIFF
NPY_START = b"\x93NUMPY"
SAME_SIZE = 1e-3  # relative difference of voxel sizes that is rounding
KNOWN = "an OME-Zarr, zarr, N5 or precomputed folder, a folder of slices, HDF5, TIFF or .npy"


def open_volume(
    source: str | Path | np.ndarray,
    *,
    at_nm: Float3 | None = None,
    channel: int | str | None = None,
    time: int | None = None,
    voxel_size_nm: Float3 | None = None,
    origin_nm: Float3 | None = None,
    gaps: Gaps = "refuse",
) -> Volume:
    """Open a volume lazily, whatever its format.

    Args:
        source: an address (table above) or an array.
        at_nm: wanted voxel size; the level whose voxels are nearest to it (in log size) is opened.
            Without it, the finest level. `Volume.level` says which.
        channel: which channel, by number or by the name in the metadata; without it all of them, for
            `Volume.read_channels`.
        time: which time point, where there are several.
        voxel_size_nm: voxel size, for files that do not say; it overrides what the file says.
        origin_nm: position of the centre of voxel (0, 0, 0), likewise.
        gaps: what to do where the numbers of slices in a folder leave a gap: refuse it, or close it,
            so that the slices follow each other.

    >>> volume = open_volume(np.zeros((4, 8, 8), np.uint8), voxel_size_nm=(40, 4, 4))
    >>> volume.shape, int(volume[1:3, 0:2, 0:2].sum())
    ((4, 8, 8), 0)
    """
    at_nm = None if at_nm is None else voxel_size("at_nm", at_nm)
    wanted = Wanted(at_nm, channel, time, gaps)
    if isinstance(source, np.ndarray):
        native = source.astype(source.dtype.newbyteorder("="), copy=False)
        volume = as_volume(native, "array in memory", "numpy")
        check_choice(volume.source, "zyx", wanted)
    else:
        with understood(str(source)):
            volume = _open_with_options(str(source), wanted)
    if voxel_size_nm is not None:
        volume = replace(volume, voxel_size_nm=voxel_size("voxel_size_nm", voxel_size_nm))
    if origin_nm is not None:
        volume = replace(volume, origin_nm=first_voxel("origin_nm", origin_nm))
    return volume


def _open_with_options(address: str, wanted: Wanted) -> Volume:
    place, options = split_options(address)
    if not options:
        return _open_address(address, wanted)
    size_nm, channel = voxel_nm(address, options), options.get("channel")
    if channel is not None:
        if wanted.channel not in (None, channel) and str(wanted.channel) != channel:
            raise VolumeFormatError(
                f"{address} names a channel, and channel={wanted.channel!r} is asked for; give one"
            )
        wanted = wanted._replace(channel=channel)
    if "gaps" in options:
        wanted = wanted._replace(gaps=gaps_of(address, options))
    volume = _open_address(place, wanted._replace(options=options))
    check_options(address, options, volume.format)
    # Whoever opens it anew, at another level or in another process, needs the options too.
    volume = replace(volume, source=address)
    return volume if size_nm is None else _sized(volume, size_nm)


def _sized(volume: Volume, size_nm: Float3) -> Volume:
    """The volume with the voxel size of its address, refused where the file says another one."""
    stated = volume.levels[0].voxel_size_nm if volume.levels else volume.voxel_size_nm
    if stated is None:
        open_label = volume.open_label and partial(_sized_label, volume.open_label, size_nm)
        return replace(volume, voxel_size_nm=size_nm, open_label=open_label)
    if not all(math.isclose(s, n, rel_tol=SAME_SIZE) for s, n in zip(stated, size_nm, strict=True)):
        said = ",".join(f"{s:g}" for s in stated)
        raise VolumeFormatError(
            f"{volume.source}: the file itself says voxel_nm={said}; leave the option out, or mend "
            "the file where that is wrong"
        )
    return volume


def _sized_label(open_label: Callable[[str], Volume], size_nm: Float3, name: str) -> Volume:
    """A label image beside a volume: on the same voxels, unless it says otherwise itself."""
    label = open_label(name)
    return label if label.voxel_size_nm else replace(label, voxel_size_nm=size_nm)


def _open_address(address: str, wanted: Wanted) -> Volume:
    if address.startswith(IMAGES):
        raise VolumeFormatError(
            f"{address} is a collection of images, and one volume is wanted here; name one volume, or "
            "open the collection with em_data.open_images"
        )
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
    if not path.is_dir():
        raise VolumeFormatError(f"{path} is a pipe or a device; wanted {KNOWN}")
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

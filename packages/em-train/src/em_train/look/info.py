"""`emtrain info`: what is installed, and what a volume, a run or a folder of weights is.

torch is imported only where it is asked about: a volume is described in half a second.
"""

from __future__ import annotations

import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, Images, Volume, VolumeFormatError, open_images, open_volume
from em_data.formats.images import SCHEME as IMAGES
from em_data.volume import listed
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

LOOK_VX = 512  # side of the window whose values are read: a slice may have gigabytes
SMALL_PX = 256  # smaller pictures are enlarged, so that titles fit
PACKAGES = (
    *("em-data", "em-models", "em-losses", "em-kernels", "em-train"),
    *("torch", "timm", "numpy", "zarr"),
)


def describe(
    path: str | None, thumbnail: Path | None = None, channel: int | str | None = None
) -> dict[str, Any]:
    """A flat description of this machine or of what lies at `path`, a volume with a picture."""
    folder = Path(path or "")
    if path and (folder / "model.safetensors").exists():
        found = _weights(folder)
    elif path and (folder / "config.json").exists():
        found = _run(folder)
    elif path and path.startswith(IMAGES):
        found = _collection(open_images(path))
    elif path:
        volume = open_volume(path, channel=channel)
        found = _volume(volume)
        if channel is not None:
            found.setdefault("channel", channel)
        if thumbnail:
            found["thumbnail"] = _save_thumbnail(volume, thumbnail, channel)
        return found
    else:
        found = _machine()
    for what, given in (("a thumbnail", thumbnail), ("a channel", channel)):
        if given is not None:
            raise VolumeFormatError(f"{what} is that of a volume; name one, or leave it out")
    return found


def print_description(description: dict[str, Any]) -> None:
    """Print a description as a table."""
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in description.items():
        if isinstance(value, list):
            value = "\n".join(map(str, value))
        table.add_row(Text(name, style="bold"), Text(str(value)))
    Console(soft_wrap=True).print(table)


def _machine() -> dict[str, Any]:
    import torch
    from em_losses import kernels_in_use

    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["gpus"] = gpus or "none"
    found["cpu threads"] = torch.get_num_threads()
    if kernels_in_use():
        import em_kernels

        found["losses"] = "compiled (EM_KERNELS=0 forces plain torch)"
        found |= {f"kernels: {key}": str(value) for key, value in em_kernels.build_info().items()}
    else:
        found["losses"] = "plain torch (em-kernels is not installed, or EM_KERNELS=0)"
    return found


def _volume(volume: Volume) -> dict[str, Any]:
    size = volume.voxel_size_nm
    found: dict[str, Any] = {
        "volume": volume.source,
        "format": volume.format,
        "shape (z, y, x)": list_text(volume.shape),
        "type": str(volume.dtype),
        "voxel size (nm)": list_text(size)
        if size
        else "unknown: say it in the address, ?voxel_nm=Z,Y,X",
        "origin (nm)": list_text(volume.origin_nm),
        "extent (µm)": list_text(
            [round(n * s / 1000, 3) for n, s in zip(volume.shape, size, strict=True)]
        )
        if size
        else "unknown",
        "decoded size": f"{volume.nbytes / 2**20:.1f} MiB",
    }
    if volume.chunk_vx:
        found["chunks"] = list_text(volume.chunk_vx)
        found["shards"] = list_text(volume.shard_vx) if volume.shard_vx else "none"
    found["compression"] = volume.compression or "none"
    if volume.levels:
        found["levels"] = [
            f"{level.path}: {list_text(level.shape)}, "
            + (f"{list_text(level.voxel_size_nm)} nm" if level.voxel_size_nm else "no unit")
            for level in volume.levels
        ]
    if len(volume.channels) > 1:
        found["channels"] = f"{len(volume.channels)}: {listed(volume.channels)}"
    elif volume.channels:
        found["channel"] = volume.channels[0]
    if volume.label_names:
        found["labels"] = ", ".join(volume.label_names)
    side = math.ceil(LOOK_VX / math.sqrt(max(1, len(volume.channels))))
    size_vx = (1, min(volume.shape[1], side), min(volume.shape[2], side))
    z, y, x = ((n - s) // 2 for n, s in zip(volume.shape, size_vx, strict=True))
    voxels = volume.read_channels(Box((z, y, x), size_vx))
    with np.errstate(invalid="ignore"):  # of NaN and infinite voxels
        mean = np.divide(voxels, voxels.size, dtype=np.float64).sum()  # a sum could be too large
    found["values in the middle"] = (
        f"{voxels.min()} to {voxels.max()}, mean {mean:.1f}, "
        f"{len(np.unique(voxels))} different, in slice {z}"
    )
    return found


def _collection(images: Images) -> dict[str, Any]:
    sides, size = images.shapes[:, 1:], images.voxel_size_nm
    found: dict[str, Any] = {
        "images": images.folder,
        "number": f"{len(images):,}",
        "smallest (y, x)": list_text(sides[sides.prod(1).argmin()]),
        "largest (y, x)": list_text(sides[sides.prod(1).argmax()]),
        "type": str(images.dtype),
        "voxel size (nm)": list_text(size)
        if size
        else "unknown: say it in the address, ?voxel_nm=Z,Y,X",
        "decoded size": f"{images.nbytes / 2**20:.1f} MiB",
    }
    return found | ({"notes": [*images.notes]} if images.notes else {})


def _save_thumbnail(volume: Volume, path: Path, channel: int | str | None) -> str:
    """Write the middle of a volume seen from above and from the side; says what is shown."""
    from em_train.look.pictures import save_row

    # The coarsest level that fills the picture shows most of the volume for the least reading.
    for level in reversed(volume.levels):
        if level.voxel_size_nm and max(level.shape[1:]) >= LOOK_VX:
            volume = open_volume(volume.source, at_nm=level.voxel_size_nm, channel=channel)
            break
    size_nm = volume.voxel_size_nm or (1.0, 1.0, 1.0)
    stretch = size_nm[0] / size_nm[2]
    depth = max(1, min(volume.shape[0], round(LOOK_VX / stretch)))
    side = [min(n, LOOK_VX) for n in volume.shape[1:]]
    xy, z = _middle(volume, (1, side[0], side[1]))
    xz, y = _middle(volume, (depth, 1, side[1]))
    low, high = np.percentile(np.concatenate([xy.ravel(), xz.ravel()]), [0.5, 99.5])
    zoom = max(1, SMALL_PX // max(side))
    panels = []
    for name, voxels, height in (
        (f"xy at z {z[0]}", xy[0], side[0]),
        (f"xz at y {y[1]}", xz[:, 0], max(1, round(depth * stretch))),
    ):
        rows = np.arange(height * zoom) * len(voxels) // (height * zoom)
        grey = (voxels[rows].repeat(zoom, axis=1) - low) / max(high - low, 1e-9)
        panels.append((name, np.rint(np.nan_to_num(grey.clip(0, 1)) * 255).astype(np.uint8)))
    save_row(panels, path)
    at = f"at {list_text(volume.voxel_size_nm)} nm" if volume.voxel_size_nm else "not to scale"
    return f"{path}: {panels[0][0]} and {panels[1][0]}, {at}"


def _middle(volume: Volume, size_vx: tuple[int, int, int]) -> tuple[np.ndarray, list[int]]:
    """The box of that size in the middle of a volume, as float32, and where it begins."""
    origin = [(n - s) // 2 for n, s in zip(volume.shape, size_vx, strict=True)]
    z, y, x = origin
    return volume.read(Box((z, y, x), size_vx)).astype(np.float32), origin


def _weights(folder: Path) -> dict[str, Any]:
    from em_models import count_parameters, load, read_description

    described, model = read_description(folder), load(folder)
    found = {"weights": str(folder), "class": described.name}
    found["parameters"] = f"{count_parameters(model):,}"
    return found | {key: str(value) for key, value in described.config.items()}


def _run(folder: Path) -> dict[str, Any]:
    from em_train.engine.stored import read_config, read_rows

    described = read_config(folder)
    rows = read_rows(folder).rows
    found: dict[str, Any] = {"run": str(folder), "command": f"emtrain {described['command']}"}
    volumes = described.get("data", {}).get("volumes")
    found["data"] = ", ".join(map(str, volumes)) if isinstance(volumes, list) else "unknown"
    wanted = described.get("run", {}).get("steps", "unknown")
    found["steps"] = f"{rows[-1]['step'] if rows else 0} of {wanted}"
    if rows:
        found["last row"] = [f"{key} {value:.4g}" for key, value in rows[-1].items()]
    found["weights"] = (
        ", ".join(sorted(p.name for p in (folder / "weights").glob("*"))) or "not yet"
    )
    report = folder / "report.html"
    found["report"] = str(report) if report.exists() else "not yet"
    return found


def list_text(values: Any) -> str:
    """(64, 384, 384) -> 64 × 384 × 384."""
    return " × ".join(f"{value:g}" for value in values)

"""`emtrain info`: what is installed, and what a volume, a run or a folder of weights is.

torch is imported only where it is asked about: a volume is described in half a second.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, Volume, VolumeFormatError, open_volume
from rich import box
from rich.console import Console
from rich.table import Table

LOOK_VX = 512  # side of the window whose values are read: a slice may have gigabytes
PACKAGES = (
    *("em-data", "em-models", "em-losses", "em-kernels", "em-train"),
    *("torch", "timm", "numpy", "zarr"),
)


def describe(path: str | None) -> dict[str, Any]:
    """A flat description of this machine or of what lies at `path`."""
    if path is None:
        return _machine()
    folder = Path(path)
    if (folder / "model.safetensors").exists():
        return _weights(folder)
    if (folder / "config.json").exists():
        return _run(folder)
    return _volume(open_volume(path))


def print_description(description: dict[str, Any]) -> None:
    """Print a description as a table."""
    table = Table(box=box.SIMPLE, show_header=False)
    for name, value in description.items():
        if isinstance(value, list):
            value = "\n".join(map(str, value))
        table.add_row(f"[bold]{name}[/]", str(value))
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
        "voxel size (nm)": list_text(size) if size else "unknown: give voxel_size_nm",
        "origin (nm)": list_text(volume.origin_nm),
        "extent (µm)": list_text(
            [round(n * s / 1000, 3) for n, s in zip(volume.shape, size, strict=True)]
        )
        if size
        else "unknown",
        "decoded size": f"{volume.nbytes / 2**20:.1f} MiB",
    }
    chunks = getattr(volume.array, "chunks", None)
    if chunks is not None:
        found["chunks"] = list_text(chunks)
        shards = getattr(volume.array, "shards", None)
        found["shards"] = list_text(shards) if shards else "none"
    if volume.levels:
        found["levels"] = [
            f"{level.path}: {list_text(level.shape)}, "
            + (f"{list_text(level.voxel_size_nm)} nm" if level.voxel_size_nm else "no unit")
            for level in volume.levels
        ]
    if volume.label_names:
        found["labels"] = ", ".join(volume.label_names)
    size_vx = (1, min(volume.shape[1], LOOK_VX), min(volume.shape[2], LOOK_VX))
    z, y, x = ((n - s) // 2 for n, s in zip(volume.shape, size_vx, strict=True))
    voxels = volume.read(Box((z, y, x), size_vx))
    found["values in the middle"] = (
        f"{voxels.min()} to {voxels.max()}, mean {voxels.mean():.1f}, "
        f"{len(np.unique(voxels))} different, in slice {z}"
    )
    return found


def _weights(folder: Path) -> dict[str, Any]:
    from em_models import count_parameters, load

    described = json.loads((folder / "config.json").read_text())
    model = load(folder)
    found = {"weights": str(folder), "class": described["class"]}
    found["parameters"] = f"{count_parameters(model):,}"
    return found | {key: str(value) for key, value in described["config"].items()}


def _run(folder: Path) -> dict[str, Any]:
    described = json.loads((folder / "config.json").read_text())
    if "command" not in described:
        raise VolumeFormatError(
            f"{folder}/config.json belongs neither to a run nor to weights; "
            "wanted a volume, a run folder or a folder of weights"
        )
    from em_train.run_folder import RunFolder

    rows = RunFolder(folder).rows()
    found: dict[str, Any] = {"run": str(folder), "command": f"emtrain {described['command']}"}
    found["data"] = ", ".join(described["data"]["volumes"])
    found["steps"] = f"{rows[-1]['step'] if rows else 0} of {described['optim']['steps']}"
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

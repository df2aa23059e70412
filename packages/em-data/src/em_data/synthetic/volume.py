"""A synthetic volume behind an address: `synthetic:shape=64x384x384,voxel_nm=17.6x8x8,seed=1`.

Voxels are rendered when they are read, so a volume of any size costs nothing until then.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from em_data.errors import VolumeFormatError
from em_data.geometry import Int3, float3, int3
from em_data.synthetic.config import SyntheticConfig
from em_data.synthetic.render import render
from em_data.volume import Volume

SYNTHETIC = "synthetic:"
EXAMPLE = "synthetic:shape=64x384x384,voxel_nm=17.6x8x8,seed=1"


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


def open_synthetic(address: str) -> Volume:
    """The raw volume, with `classes` and `instances` beside it."""
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
    parts = [part for part in address.removeprefix(SYNTHETIC).split(",") if part]
    keys = [part.partition("=")[0] for part in parts]
    for key, part in zip(keys, parts, strict=True):
        value = part.partition("=")[2]
        if keys.count(key) > 1:
            raise VolumeFormatError(f"{address}: {key} is given twice; give it once")
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
                f"{address}: {part!r} is not understood; wanted for instance {EXAMPLE}"
            ) from None
    try:
        return SyntheticConfig(**settings)
    except ValueError as error:
        raise VolumeFormatError(f"{address}: {error}; wanted for instance {EXAMPLE}") from None

"""`emtrain predict` for runs of mae: the vector of every patch of a whole volume.

One voxel of what is written is a patch. Windows of the size that the encoder learned on overlap and
are mixed (`em_models.dense_features`); where they lie depends on the volume alone, so no byte depends
on blocks or processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from em_data import Box, ImageConfig, Volume
from em_data.geometry import Int3, float3, int3
from em_data.writer.tiling import TileGrid

from em_train.engine.grey import choose
from em_train.features.slab import Slab, patch_grid
from em_train.mae.run import open_run
from em_train.predict.plan import Prediction, check_outputs

CHUNK_VX: Int3 = (16, 32, 32)  # patches; with all their channels one file of about 20 MiB


def plan(run: str, address: str, outputs: Sequence[str], tta: bool, grey: str) -> Prediction:
    """What the encoder of a run says about the patches of a volume; the output is `embedding`."""
    check_outputs(outputs, "mae")
    if tta:
        raise ValueError("--tta is of probabilities; the mean of vectors of turned patches is none")
    stored = open_run(Path(run))
    volume, config = stored.open(address), stored.encoder.config
    chosen, grid = choose(Path(run), volume, grey), patch_grid(volume, config.patch_vx)
    size_nm, origin_nm = volume.voxel_size_nm, volume.origin_nm
    if size_nm:
        origin_nm = float3(
            [
                o + (p - 1) / 2 * s
                for o, p, s in zip(origin_nm, config.patch_vx, size_nm, strict=True)
            ]
        )
        size_nm = float3([p * s for p, s in zip(config.patch_vx, size_nm, strict=True)])
    image = ImageConfig(
        shape_vx=grid,
        dtype="float32",
        voxel_size_nm=size_nm,
        origin_nm=origin_nm,
        channels=tuple(f"embedding {i}" for i in range(config.width)),
        chunk_vx=CHUNK_VX,
        shard_vx=CHUNK_VX,
    )
    window = int3(
        [
            max(1, min(n // p, g))
            for n, p, g in zip(stored.data.cube.size_vx, config.patch_vx, grid, strict=True)
        ]
    )

    def compute(box: Box) -> Mapping[str, np.ndarray]:
        held = replace(volume, array=_read_around(volume, box, window, config.patch_vx))
        slab = Slab(held, chosen.range, config.patch_vx, box.origin_vx, box.size_vx)
        return {"": stored.maps(slab, (-1,))[0].numpy()}

    return Prediction(
        images=(image,),
        grid=TileGrid(tile_vx=window, overlap_vx=int3([n // 2 for n in window])),
        channels=config.width,
        raw_itemsize=volume.dtype.itemsize * math.prod(config.patch_vx),
        compute=compute,
        grey=chosen,
    )


@dataclass(frozen=True)
class _Part:
    """The part of a volume that the windows of a block see, read once: each is in several windows."""

    voxels: np.ndarray
    origin_vx: Int3
    shape: Int3  # of the volume

    @property
    def dtype(self) -> Any:
        return self.voxels.dtype

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        places = zip(index, self.origin_vx, strict=True)
        found: np.ndarray = self.voxels[tuple(slice(i.start - o, i.stop - o) for i, o in places)]
        return found


def _read_around(volume: Volume, box: Box, window: Int3, patch_vx: Int3) -> _Part:
    origin, end = [], []
    for o, n, w, p, whole in zip(
        box.origin_vx, box.size_vx, window, patch_vx, volume.shape, strict=True
    ):
        origin.append(max(0, o - w + 1) * p)
        end.append(min((o + n + w - 1) * p, whole))
    size = int3([b - a for a, b in zip(origin, end, strict=True)])
    return _Part(volume.read(Box(int3(origin), size)), int3(origin), volume.shape)

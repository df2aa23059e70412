"""A finished mae run: its encoder as a source of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch
from em_data import Box, PlaceSampler, Volume, grey_range
from em_data.augment.clahe import clahe
from em_data.geometry import Int3, int3
from em_data.sampler import CubeConfig, Key
from em_models import Vit3d, Voxels, dense_features
from em_models.positions import token_places
from torch import Tensor

from em_train.engine.device import choose_device
from em_train.engine.reading import open_at
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import finished, stored_part
from em_train.features.slab import Slab
from em_train.judge.readout import CROPS, TEST_CROPS, place_score
from em_train.mae.data import DataConfig


class MaeRun(NamedTuple):
    """The encoder of a mae run and what it read."""

    encoder: Vit3d
    data: DataConfig

    @property
    def patch_vx(self) -> Int3:
        """The patches of the encoder."""
        return self.encoder.config.patch_vx

    @property
    def layered(self) -> bool:
        """The encoder has a vector after each of its blocks."""
        return True

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run."""
        return open_at(address, self.data)

    def maps(self, slab: Slab, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Vectors of each layer: a map each."""
        found = dense_features(
            self.encoder,
            lambda origin, size: _voxels(slab, Box(origin, size), self.data.clahe),
            slab.volume.shape,
            window_vx=self.data.cube.size_vx,
            layers=layers,
            box=(slab.origin, slab.size),
            scale=slab.grey.scale if _straight(slab.volume, self.data) else None,
            shift=slab.grey.shift,
            voxel_size_nm=slab.volume.voxel_size_nm,
        )
        return list(found.split(self.encoder.config.width))

    def untrained(self, seed: int) -> MaeRun:
        """The same with weights that have seen nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = Vit3d(self.encoder.config)
        device = next(self.encoder.parameters()).device
        return self._replace(encoder=fresh.to(device).eval())

    @torch.inference_mode()
    def knows_where(self, volume: Volume, layer: int, seed: int) -> float:
        """R² of a token's place in the crop, read from its vector on crops of other places."""
        config, crop = self.encoder.config, self.data.cube
        size = [
            min(n, s) // p
            for n, s, p in zip(volume.shape, crop.size_vx, config.patch_vx, strict=True)
        ]
        extent = int3([n * p for n, p in zip(size, config.patch_vx, strict=True)])
        sampler = PlaceSampler([volume.shape], CubeConfig(size_vx=extent), seed)
        slab = Slab(volume, grey_range(volume), config.patch_vx, (0, 0, 0), int3(size))
        device = next(self.encoder.parameters()).device
        straight = _straight(volume, self.data)
        scale, shift = (
            torch.full((1,), v, device=device) if straight else None
            for v in (slab.grey.scale, slab.grey.shift)
        )
        vectors = []
        for number in range(CROPS + TEST_CROPS):
            voxels = _voxels(slab, sampler(Key(0, number)).box, self.data.clahe).to(device)
            cube = Voxels(voxels[None, None], scale, shift, volume.voxel_size_nm)
            vectors.append(self.encoder.get_intermediate_features(cube, [layer])[layer][0].cpu())
        places = token_places(int3(size), config.patch_vx)
        return place_score(vectors, places[:, [n > 1 for n in size]])


def open_run(run: Path) -> MaeRun:
    """The encoder of a mae run, on the device that the run chose, and what it read."""
    data = stored_part(run, "mae", "data", DataConfig)
    how = stored_part(run, "mae", "run", RunConfig)
    encoder: Any = em_models.load(finished(run) / "encoder")
    return MaeRun(encoder.to(choose_device(how.device)).eval(), data)


def _voxels(slab: Slab, box: Box, equalise: bool) -> Tensor:
    """Voxels as the encoder of a mae run takes them: bytes as stored, else in [0, 1]."""
    voxels = slab.volume.read(box)
    if voxels.dtype == "uint8" and not equalise:
        return torch.from_numpy(voxels)
    image = torch.from_numpy(slab.grey.unit(voxels))
    return clahe(image) if equalise else image


def _straight(volume: Volume, data: DataConfig) -> bool:
    return volume.dtype == "uint8" and not data.clahe

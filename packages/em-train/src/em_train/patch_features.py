"""Vectors for every patch of a volume: of frozen encoders, and of what needs no learning.

Whatever it is, it comes as one map (D, z, y, x) over the same patches, so that all are read out alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch
import torch.nn.functional as F
from em_data import Box, GreyRange, PlaceSampler, Volume, grey_range
from em_data.clahe import clahe
from em_data.geometry import Int3, int3
from em_data.sampler import CubeConfig, Key
from em_models import FilterBank, FilterBankConfig, Vit3d, Voxels, dense_features
from em_models.patches import patchify
from em_models.positions import sincos, token_places
from torch import Tensor

from em_train.dense import codes as dense_codes
from em_train.dense.codes import grid_maps
from em_train.engine.device import choose_device
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part
from em_train.mae.data import DataConfig
from em_train.probe import pooled
from em_train.reading import open_at
from em_train.readout import determination

COMPONENTS = 64  # of raw patches
PLACE_CHANNELS = 48  # of positions
CROPS, TEST_CROPS = 48, 16  # from which position is read


class Slab(NamedTuple):
    """Some patches of a volume: a box of the grid of its patches."""

    volume: Volume
    grey: GreyRange
    patch_vx: Int3
    origin: Int3  # in patches
    size: Int3

    @property
    def box(self) -> Box:
        """The same in voxels."""
        scaled = [
            tuple(n * p for n, p in zip(one, self.patch_vx, strict=True))
            for one in (self.origin, self.size)
        ]
        return Box(int3(scaled[0]), int3(scaled[1]))


class MaeRun(NamedTuple):
    """The encoder of a mae run and what it read."""

    encoder: Vit3d
    data: DataConfig

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run."""
        return open_at(address, self.data)

    def maps(self, slab: Slab, layers: Sequence[int]) -> list[Tensor]:
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
        return _where(vectors, places[:, [n > 1 for n in size]])


class DenseRun(NamedTuple):
    """The encoder of a dense-ssl run; a patch has the mean of its pixels' embeddings."""

    encoder: Any
    data: Any

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run."""
        return open_at(address, self.data)

    def maps(self, slab: Slab, layers: Sequence[int] = ()) -> list[Tensor]:
        """The embedding: one map."""
        step = math.gcd(slab.patch_vx[1], slab.patch_vx[2], self.encoder.geometry.pitch)

        def embedding(plane: Tensor) -> Tensor:
            return grid_maps(self.encoder, plane, step).embedding

        reach = self.encoder.geometry.trimmed // 2 + step
        return [_mean_of_planes(slab, embedding, step, reach)]

    def untrained(self, seed: int) -> DenseRun:
        """The same with weights that have seen nothing, and norms that have seen nothing either."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.encoder)(self.encoder.config)
        device = next(self.encoder.parameters()).device
        return self._replace(encoder=fresh.to(device).eval())

    @torch.inference_mode()
    def knows_where(self, volume: Volume, layer: int, seed: int) -> float:
        """R² of a code's place in the crop, read from its embedding on crops of other places."""
        side = min(self.data.stack.size_vx, *volume.shape[1:])
        sampler = PlaceSampler([volume.shape], CubeConfig(size_vx=(1, side, side)), seed)
        grey, device = grey_range(volume), next(self.encoder.parameters()).device
        vectors, size = [], (1, 1)
        for number in range(CROPS + TEST_CROPS):
            image = torch.from_numpy(grey.unit(volume.read(sampler(Key(0, number)).box)))
            found = self.encoder(image[None].to(device)).embedding[0].cpu()  # (E, y, x)
            size = (found.shape[1], found.shape[2])
            vectors.append(found.flatten(1).T)
        return _where(vectors, token_places((1, *size), (1, 1, 1))[:, 1:])


def open_run(run: Path) -> MaeRun | DenseRun:
    """The encoder of a run, whichever recipe it is of."""
    weights = run / "weights" / "encoder"
    if not (weights / "config.json").exists():
        raise FileNotFoundError(f"{run} holds no encoder; give a finished run of mae or dense-ssl")
    if not isinstance(encoder := em_models.load(weights), Vit3d):
        return DenseRun(*dense_codes.open_run(run))
    data = stored_part(run, "mae", "data", DataConfig)
    how = stored_part(run, "mae", "run", RunConfig)
    return MaeRun(encoder.to(choose_device(how.device)).eval(), data)


# What needs no learning ---------------------------------------------------------------------------


def raw_patches(fit: Slab, score: Slab) -> tuple[Tensor, Tensor]:
    """The principal components of the voxels of patches, found on those to fit."""
    maps = [_voxels_of_patches(slab) for slab in (fit, score)]  # (D, z, y, x)
    x = maps[0].flatten(1).T.double()
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    basis = vectors[:, -COMPONENTS:]
    fitted, scored = (
        ((one.flatten(1).T.double() - mean) @ basis).T.unflatten(1, one.shape[1:]).float()
        for one in maps
    )
    return fitted, scored


def bank_maps(slab: Slab) -> Tensor:
    """The mean over a patch of the features of its pixels, and means of that over wider windows."""
    bank = FilterBank(FilterBankConfig())
    margin = [bank.config.margin] * 4

    def features(plane: Tensor) -> Tensor:
        return bank.compute(F.pad(plane[None, None], margin, mode="reflect"))[0]

    maps = _mean_of_planes(slab, features, 1, bank.config.margin)  # (F, z, y, x)
    return pooled(maps.transpose(0, 1)).transpose(0, 1)


def places(slab: Slab) -> Tensor:
    """Where a patch lies in the volume, and nothing else."""
    grid = int3([o + n for o, n in zip(slab.origin, slab.size, strict=True)])
    at = token_places(grid, (1, 1, 1)).unflatten(0, grid)
    z, y, x = (slice(o, None) for o in slab.origin)
    inner = at[z, y, x].flatten(0, 2)
    channels = torch.cat([inner, sincos(inner, PLACE_CHANNELS)], 1)
    return channels.T.unflatten(1, slab.size)


def _mean_of_planes(slab: Slab, features: Any, step: int, reach_vx: int) -> Tensor:
    """Features of slices (Y, X) -> (D, y, x) at every `step`-th pixel, averaged over patches.

    Slices are read with so much around them as features depend on, where the volume has it.
    """
    (pz, py, px), shown, height_width = slab.patch_vx, slab.box, slab.volume.shape[1:]
    low = [
        max(0, o - -(-reach_vx // p) * p)
        for o, p in zip(shown.origin_vx[1:], (py, px), strict=True)
    ]
    ends = (o + n for o, n in zip(shown.origin_vx[1:], shown.size_vx[1:], strict=True))
    high = [min(n, end + reach_vx) for n, end in zip(height_width, ends, strict=True)]
    rows, columns = (
        slice((o - first) // step, (o - first + n) // step)
        for o, first, n in zip(shown.origin_vx[1:], low, shown.size_vx[1:], strict=True)
    )
    size = (1, high[0] - low[0], high[1] - low[1])
    found: list[Tensor] = []
    for z in range(shown.size_vx[0]):
        plane = Box((shown.origin_vx[0] + z, low[0], low[1]), size)
        image = torch.from_numpy(slab.grey.unit(slab.volume.read(plane)))[0]
        with torch.inference_mode():
            inner = features(image)[:, rows, columns]
            means = F.avg_pool2d(inner[None], (py // step, px // step))[0]
        if z % pz == 0:
            found.append(means / pz)
        else:
            found[-1] = found[-1] + means / pz
    return torch.stack(found, 1)


def _voxels_of_patches(slab: Slab) -> Tensor:
    image = torch.from_numpy(slab.grey.unit(slab.volume.read(slab.box)))
    return patchify(image[None, None], slab.patch_vx)[0].T.unflatten(1, slab.size)


def _voxels(slab: Slab, box: Box, equalise: bool) -> Tensor:
    """Voxels as the encoder of a mae run takes them: bytes as stored, else in [0, 1]."""
    voxels = slab.volume.read(box)
    if voxels.dtype == "uint8" and not equalise:
        return torch.from_numpy(voxels)
    image = torch.from_numpy(slab.grey.unit(voxels))
    return clahe(image) if equalise else image


def _straight(volume: Volume, data: DataConfig) -> bool:
    return volume.dtype == "uint8" and not data.clahe


def _where(vectors: Sequence[Tensor], places: Tensor) -> float:
    """R² of places (N, T) from the vectors (N, D) of crops, fitted on some and tested on others."""
    fitted, tested = torch.cat(list(vectors[:CROPS])), torch.cat(list(vectors[CROPS:]))
    return determination(fitted, places.repeat(CROPS, 1), tested, places.repeat(TEST_CROPS, 1))

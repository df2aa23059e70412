"""A finished restore run as a source of features: what its network knows before it answers.

Tiles are those of `emtrain predict`, so that a feature does not depend on the patches that are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from em_data import Box, PlaceSampler, Volume, grey_range, interpolated
from em_data.geometry import int3
from em_data.sampler import CubeConfig, Key
from em_data.writer.tiling import predict_block
from em_models.positions import token_places
from torch import Tensor, nn

from em_train.features.slab import Slab
from em_train.judge.readout import CROPS, TEST_CROPS, place_score
from em_train.predict.tiles import grid_of, tile_model, tile_side
from em_train.restore import run as finished
from em_train.restore.predict import open_at_scale
from em_train.restore.run import RestoreRun


class FrozenRestorer(NamedTuple):
    """A restore run whose network ends before its head; a patch has the mean of its pixels' features."""

    network: Any
    stored: RestoreRun

    @property
    def patch_vx(self) -> None:
        """Any size will do."""
        return None

    @property
    def layered(self) -> bool:
        """There are the features before the head."""
        return False

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run; for super-resolution the finer one, interpolated."""
        factor = self.stored.factor
        return interpolated(open_at_scale(self.stored, address), (1, factor, factor))

    def maps(self, slab: Slab, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """The features before the head: one map."""
        (pz, py, px), shown = slab.patch_vx, slab.box
        grid = grid_of(self.network, tile_side(self.network, slab.volume.shape))
        how, device = self.stored.how, self.stored.device
        model = tile_model(self.network, slab.grey, device, how.precision, clip=False)
        means: list[Tensor] = []
        for z in range(shown.size_vx[0]):  # as many features a pixel would fill the memory
            plane = Box(
                int3([shown.origin_vx[0] + z, *shown.origin_vx[1:]]), int3([1, *shown.size_vx[1:]])
            )
            found = torch.from_numpy(predict_block(slab.volume, model, grid, plane)[:, 0])
            mean = F.avg_pool2d(found[None], (py, px))[0] / pz  # (D, y, x)
            if z % pz == 0:
                means.append(mean)
            else:
                means[-1] = means[-1] + mean
        return [torch.stack(means, 1)]

    def untrained(self, seed: int) -> FrozenRestorer:
        """The same with weights that have seen nothing, and norms that have seen nothing either."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = headless(type(self.network)(self.network.config))
        return self._replace(network=fresh.to(self.stored.device).eval())

    @torch.inference_mode()
    def knows_where(self, volume: Volume, layer: int, seed: int) -> float:
        """R² of a pixel's place in the crop, read from its features on crops of other places."""
        config = self.network.config
        sides = [
            min(n, self.stored.data.patch_vx) // config.stride * config.stride
            for n in volume.shape[1:]
        ]
        crop = CubeConfig(size_vx=int3([config.slices, *sides]))
        sampler, grey = PlaceSampler([volume.shape], crop, seed), grey_range(volume)
        step, vectors, size = config.stride, [], (1, 1)
        for number in range(CROPS + TEST_CROPS):
            image = torch.from_numpy(
                grey.unit(volume.read(sampler(Key(0, number)).box), clip=False)
            )
            found = self.network(image[None].to(self.stored.device))[0].cpu()
            found = found[:, step // 2 :: step, step // 2 :: step]  # (D, y, x)
            size = (found.shape[1], found.shape[2])
            vectors.append(found.flatten(1).T)
        return place_score(vectors, token_places((1, *size), (1, 1, 1))[:, 1:])


def headless(network: Any) -> Any:
    """A copy of a network that repairs, which gives the features that its head is given."""
    network = copy.deepcopy(network)
    if hasattr(network, "heads"):
        network.heads = nn.ModuleList([nn.Identity()])
    else:
        network.head = nn.Identity()
    return network


def open_run(run: Path) -> FrozenRestorer:
    """The network of a restore run, on the device that the run chose, without its head."""
    stored = finished.open_run(run)
    if not stored.network.config.local:
        raise ValueError(
            f"{run} was trained with group norm or squeeze-and-excitation: its features depend on the "
            "tile; train with norm=batch"
        )
    return FrozenRestorer(headless(stored.network.network), stored)

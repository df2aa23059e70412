"""A finished dense-ssl run: its encoder, at the scale that it was trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch
from em_data import PlaceSampler, Volume, grey_range
from em_data.sampler import CubeConfig, Key
from em_models.positions import token_places
from torch import Tensor

from em_train.dense.codes import grid_maps
from em_train.dense.data import DataConfig
from em_train.engine.device import choose_device
from em_train.engine.reading import open_at
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import finished, stored_part
from em_train.features.slab import Slab, mean_of_planes
from em_train.judge.readout import CROPS, TEST_CROPS, place_score


class DenseRun(NamedTuple):
    """The encoder of a dense-ssl run; a patch has the mean of its pixels' embeddings."""

    encoder: Any
    data: DataConfig

    @property
    def patch_vx(self) -> None:
        """Any size will do."""
        return None

    @property
    def layered(self) -> bool:
        """There is one embedding."""
        return False

    def open(self, address: str) -> Volume:
        """A volume at the scale of the run."""
        return open_at(address, self.data)

    def maps(self, slab: Slab, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """The embedding: one map."""
        step = math.gcd(slab.patch_vx[1], slab.patch_vx[2], self.encoder.geometry.pitch)

        def embedding(plane: Tensor) -> Tensor:
            return grid_maps(self.encoder, plane, step).embedding

        reach = self.encoder.geometry.trimmed // 2 + step
        return [mean_of_planes(slab, embedding, step, reach)]

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
        return place_score(vectors, token_places((1, *size), (1, 1, 1))[:, 1:])


def open_run(run: Path) -> DenseRun:
    """The encoder of a dense-ssl run, on the device that the run chose, and what it read."""
    data = stored_part(run, "dense-ssl", "data", DataConfig)
    how = stored_part(run, "dense-ssl", "run", RunConfig)
    encoder: Any = em_models.load(finished(run) / "encoder")
    return DenseRun(encoder.to(choose_device(how.device)).eval(), data)

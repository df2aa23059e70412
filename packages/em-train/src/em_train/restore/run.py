"""A finished run of restore: its best network, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import em_models
import torch
import torch.nn.functional as F
from em_data.geometry import Float3
from torch import Tensor, nn

from em_train.engine.device import choose_device
from em_train.engine.errors import StoredFileError
from em_train.engine.precision import autocast
from em_train.engine.run_config import RunConfig
from em_train.engine.run_folder import stored_part
from em_train.engine.stored import read_json
from em_train.restore.data import DataConfig
from em_train.restore.networks import NETWORKS, ModelConfig, is_residual, restored

RESTORATION = "restoration.json"


@dataclass(frozen=True)
class Restoration:
    """What `restoration.json` holds."""

    voxel_size_nm: Float3 | None
    """Of the truth that the network learned; None where no volume said it."""


class RestoreRun(NamedTuple):
    """A run of restore that is done."""

    network: Any
    data: DataConfig
    model: ModelConfig
    how: RunConfig
    voxel_size_nm: Float3 | None
    device: torch.device

    @property
    def factor(self) -> int:
        """Pixels of the result, along y and x, for one of the volume."""
        return self.data.factor if self.data.task == "super-resolution" else 1

    @torch.inference_mode()
    def restore(self, image: Tensor) -> Tensor:
        """Slices of one image, as they are shown, to the middle one: (B, S, Y, X) -> (B, Y, X).

        Beyond its border the image is mirrored, as far as the network looks.
        """
        config = self.network.config
        (y, x), stride = image.shape[2:], config.stride
        halo = [min(config.halo, n - 1) // stride * stride for n in (y, x)]
        rest = [-(n + 2 * h) % stride for n, h in zip((y, x), halo, strict=True)]
        pad = (halo[1], halo[1] + rest[1], halo[0], halo[0] + rest[0])
        padded = F.pad(image.to(self.device), pad, mode="reflect")
        with autocast(self.how.precision, self.device):
            found = self.network(padded)[:, 0].float()
        return found[:, halo[0] : halo[0] + y, halo[1] : halo[1] + x].cpu()


class Whole(nn.Module):
    """The network with what is added to it, of the same face: slices (B, S, Y, X) -> (B, 1, Y, X)."""

    def __init__(self, network: Any, residual: bool) -> None:
        super().__init__()
        self.network, self.config, self.residual = network, network.config, residual

    def forward(self, image: Tensor) -> Tensor:
        """The middle slice, repaired."""
        return restored(self.network, image, self.residual)


def open_run(run: Path) -> RestoreRun:
    """The best network of a run, on the device that the run chose, and how it is read."""
    how = stored_part(run, "restore", "run", RunConfig)
    path = run / RESTORATION
    if not path.exists():
        raise FileNotFoundError(
            f"{run} has no {RESTORATION}; finish the run first, with emtrain restore --resume"
        )
    remedy = f"put back a copy of it, or write it again with emtrain restore --out {run} --resume"
    described = read_json(path, Restoration, remedy)
    network: Any = em_models.load(run / "weights" / "network")
    classes = network.config.classes if type(network) in NETWORKS.values() else 0
    if classes != 1:
        raise StoredFileError(
            f"{run}/weights/network holds a {type(network).__name__} that repairs nothing; put back a "
            "copy of the weights"
        )
    model = stored_part(run, "restore", "model", ModelConfig)
    data = stored_part(run, "restore", "data", DataConfig)
    device = choose_device(how.device)
    return RestoreRun(
        network=Whole(network, is_residual(model, data)).to(device).eval(),
        data=data,
        model=model,
        how=how,
        voxel_size_nm=described.voxel_size_nm,
        device=device,
    )

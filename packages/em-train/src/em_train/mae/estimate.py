"""What a training step costs, counted before anything is computed.

The step is run once with tensors that have shapes and no values, and what torch would compute and keep
is added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from em_data.geometry import Int3
from em_models import Mae, MaeConfig, Masks, count_parameters
from em_models.masks import count_hidden
from em_models.patches import grid_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from em_train.engine.device import recompute

# Bytes of a parameter: weight, gradient, two moments of AdamW, average.
STATE_BYTES = 5 * 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Figures of one step of one process."""

    parameters: int
    encoder_parameters: int
    tokens: int
    """Of a cube, visible and hidden."""
    flops: float
    """Of the matrix products and attention of a cube, forward and back; nothing is counted twice for
    activations that are computed again."""
    state_bytes: int
    """Weights, gradients, optimiser and average."""
    activation_bytes: int
    """What is kept for the way back, of all cubes of the step."""

    @property
    def bytes(self) -> int:
        """Memory of the device without what single operations need for a moment."""
        return self.state_bytes + self.activation_bytes

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} M parameters ({self.encoder_parameters / 1e6:.1f} M of the "
            f"encoder), {self.tokens} tokens a cube, {self.flops / 1e9:.3g} GFLOP a cube, about "
            f"{self.bytes / 2**30:.2g} GiB ({self.activation_bytes / 2**30:.2g} of activations)"
        )


def estimate(
    config: MaeConfig,
    cube_vx: Int3,
    batch: int,
    *,
    kind: torch.dtype = torch.float32,
    recomputed: bool = False,
) -> Estimate:
    """Figures of a step with `batch` cubes, with forward passes in `kind`."""
    with FakeTensorMode():
        model = Mae(config)
        with FlopCounterMode(display=False) as counter:
            _step(model, cube_vx, 1, kind).backward()
        if recomputed:
            recompute([*model.encoder.blocks, *model.blocks])
        with _kept(model) as kept:
            _step(model, cube_vx, batch, kind)
    parameters = count_parameters(model)
    grid = grid_of(cube_vx, config.encoder.patch_vx)
    return Estimate(
        parameters=parameters,
        encoder_parameters=count_parameters(model.encoder),
        tokens=math.prod(grid),
        flops=float(counter.get_total_flops()),
        state_bytes=STATE_BYTES * parameters,
        activation_bytes=sum(kept.values()),
    )


def _step(model: Mae, cube_vx: Int3, batch: int, kind: torch.dtype) -> Tensor:
    """A loss of the model's prediction; which tokens are hidden does not matter here."""
    config = model.config
    grid = grid_of(cube_vx, config.encoder.patch_vx)
    hidden = count_hidden(grid, config.hidden_share, config.mask)
    tokens = torch.arange(math.prod(grid)).expand(batch, -1)
    masks = Masks(tokens[:, hidden:].contiguous(), tokens[:, :hidden].contiguous())
    volume = torch.zeros(batch, 1, *cube_vx)
    with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
        return model(volume, masks).float().square().mean()


@contextmanager
def _kept(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every piece of memory that is kept for the way back, weights left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, int] = {}
    alive = []  # else the name of a piece could be given to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found

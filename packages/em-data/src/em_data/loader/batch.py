"""What a loader gives: crops as stored, and their way to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from em_data.geometry import Float3
from em_data.sampler.randomness import Key


@dataclass(frozen=True)
class Batch:
    """Crops as stored, with all that is needed to make sense of them."""

    raw: Tensor  # (B, Z, Y, X)
    scale: Tensor  # (B,) float32: raw · scale + shift is in [0, 1], by the volume's own range
    shift: Tensor  # (B,)
    voxel_size_nm: list[Float3 | None]
    origin_nm: Tensor  # (B, 3) float64, centre of the first voxel
    keys: list[Key]
    labels: Tensor | None = None  # (B, C, Z, Y, X) as stored; of stacks the target slice, Z = 1
    valid: Tensor | None = None  # (B, C, Z, Y, X) bool: where there are labels

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its voxels on `device`, still as stored."""
        # Only CUDA keeps what it copies from until it has read it; MPS reads memory given back.
        ahead = torch.device(device).type == "cuda"
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=ahead))

    def image(self, *, clip: bool = True) -> Tensor:
        """The voxels as float32 in [0, 1], a percent of them beyond if not clipped: (B, Z, Y, X)."""
        found = self.in_range(self.raw)
        return found.clamp(0, 1) if clip else found

    def in_range(self, stored: Tensor) -> Tensor:
        """Stored values (B, …) of these volumes as float32, with 0 and 1 at the ends of their range."""
        scale, shift = (one.view(-1, *[1] * (stored.dim() - 1)) for one in (self.scale, self.shift))
        return stored.to(torch.float32) * scale + shift

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor that may lie on a device changed."""
        return replace(
            self,
            raw=change(self.raw),
            scale=change(self.scale),
            shift=change(self.shift),
            labels=None if self.labels is None else change(self.labels),
            valid=None if self.valid is None else change(self.valid),
        )


def sent_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a CUDA device; the next one travels while one is used."""
    side = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            there = batch.to(device)
            return there, side.record_event()

    def handed_over(batch: Batch, sent: torch.cuda.Event) -> Batch:
        user = torch.cuda.current_stream(device)
        user.wait_event(sent)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(user)  # its memory is not given away while the user works on it
            return tensor

        return batch.mapped(used)

    on_its_way: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        before, on_its_way = on_its_way, send(batch)
        if before is not None:
            yield handed_over(*before)
    if on_its_way is not None:
        yield handed_over(*on_its_way)

"""How a run is run, whatever it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from em_train.engine.device import Device
from em_train.engine.precision import Precision


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How it is run. Keys other than the seed may change when a run is resumed."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the samples and the augmentation."""
    device: Device = "auto"
    """auto, cuda, mps or cpu."""
    precision: Precision = "auto"
    """auto (bf16 where the GPU or CPU has it, else fp32), fp32, bf16 or fp16. Losses are computed in
    fp32."""
    tf32: bool = False
    """Let fp32 products on CUDA round their inputs to 10 bits: faster, less exact."""
    compile: bool = False
    """Compile the networks with torch.compile: a slow first step, then faster ones."""
    init: str | None = None
    """Run folder whose weights a new run starts from; `--init` sets it."""
    world: Literal["same", "any"] = "same"
    """Resume on the same number of processes, bit for bit, or on any, equal up to rounding."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    picture_every: PositiveInt = 100
    """Steps between pictures."""
    checkpoint_every: PositiveInt = 200
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints that are kept, beside the best one where a recipe knows it."""
    tensorboard: bool = False
    """Also write the measured rows for TensorBoard, to tensorboard/ in the run folder."""

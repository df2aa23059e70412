"""How a run is run, whatever it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from em_train.engine.device import Device
from em_train.engine.precision import Precision

# Keys that decide what a run ends in: a run that is resumed keeps them.
RESULT_KEYS = (
    *("run.seed", "run.steps", "run.accumulate", "run.bad_steps", "run.stale_after"),
    *("run.ema_decay", "run.ema_decay_end"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long it is run and how. What says nothing about the result may change on `--resume`."""

    steps: PositiveInt = 600
    """Optimiser steps of the whole run."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged into one step."""
    bad_steps: PositiveInt = 10
    """Steps in a row with gradients that are not finite, all skipped, after which the run stops."""
    stale_after: NonNegativeInt = 0
    """Measurements without a new best after which a run that measures ends early; 0: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the averaged weights, which are the ones that are shown and saved."""
    ema_decay_end: Annotated[float, Field(ge=0, le=1)] | None = None
    """Decay at the end of the run, reached by half a cosine; without it, the decay stays."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the samples and the augmentation."""
    device: Device = "auto"
    """Device: auto, cuda, mps or cpu."""
    precision: Precision = "auto"
    """Type of the forward pass: auto (bf16 where the GPU or CPU has it, else fp32), fp32, bf16
    or fp16. Losses are computed in fp32."""
    tf32: bool = False
    """Let fp32 products on CUDA round their inputs to 10 bits: faster, less exact."""
    compile: bool = False
    """Compile the networks with torch.compile: a slow first step, then faster ones."""
    init: str | None = None
    """Run folder whose weights a new run starts from; `--init` sets it."""
    world: Literal["same", "any"] = "same"
    """Processes on --resume: same (as many as before, equal bit for bit) or any (equal up to
    rounding)."""
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

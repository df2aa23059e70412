"""Milliseconds of a training step of the masked autoencoder, and how near it comes to its limit.

    python tools/bench/train/mae.py [--quick] [--json PATH] [--profile]

`ours` is the whole step: masks drawn, bytes cut into patches, forward, loss, backward, clipped, AdamW.
`limit` replays its own matrix products and attention, forward and back, recorded in this run: shapes,
strides and types are the same, and nothing else is done. `videomae` is transformers' VideoMAE of the
same sizes with its own loss, on voxels that are floats already, with the same optimiser; it is left out
where transformers is not installed. All of them run in turns in this process.

On the CPU: Small, cubes of 64³, patches of 8³, batch 8. On CUDA also ViT-B on 128³, with the share of
the speed of a matrix product in bf16 that a step reaches.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch is imported

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from em_data.geometry import Int3
from em_losses import kernels_in_use
from em_models import Mae, MaeConfig, Voxels, mae_size
from em_train.engine import optim, precision
from em_train.engine.optim import OptimConfig
from em_train.engine.run_config import RunConfig
from em_train.engine.update import Update
from em_train.mae.estimate import estimate
from em_train.mae.validation import error_of
from em_train.measure.training import peak_speed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import show, write

Row = dict[str, Any]
OURS = ("patchify", "reconstruction", "randperm", "argsort", "aten::sort")  # beside the networks


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step."""

    size: str
    cube_vx: Int3
    batch: int
    kind: torch.dtype
    device: str

    @property
    def name(self) -> str:
        """The case in words."""
        cube = " × ".join(map(str, self.cube_vx))
        kind = str(self.kind).removeprefix("torch.")
        return f"step {self.size} {cube} batch {self.batch} {kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Tiny on 32³, few turns")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="also list the dearest operations")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    turns = 3 if options.quick else options.turns
    rows: list[Row] = []
    for case in cases(options.quick):
        rows += measure(case, turns, listed=options.profile)
    show(rows)
    if options.json:
        conditions = {
            "turns": turns,
            "patch_vx": [8, 8, 8],
            "hidden_share": 0.75,
            "kernels": kernels_in_use(),
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
            "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "unset"),
        }
        write(options.json, conditions, rows)


def cases(quick: bool) -> list[Case]:
    """What is measured on this machine."""
    size, cube, batch = ("tiny", (32, 32, 32), 4) if quick else ("small", (64, 64, 64), 8)
    found = [
        Case(size=size, cube_vx=cube, batch=batch, kind=kind, device="cpu")
        for kind in (torch.float32, torch.bfloat16)
    ]
    if torch.cuda.is_available():
        found = [
            Case(size="small", cube_vx=(64, 64, 64), batch=64, kind=torch.bfloat16, device="cuda"),
            Case(
                size="base", cube_vx=(128, 128, 128), batch=16, kind=torch.bfloat16, device="cuda"
            ),
        ]
    return found


def measure(case: Case, turns: int, *, listed: bool) -> list[Row]:
    """The rows of one case."""
    torch.manual_seed(0)
    config = mae_size(case.size)
    train = our_step(config, case)
    train()
    limit = Replay(train)
    steps: dict[str, Callable[[], object]] = {"ours": train, "limit": limit.run}
    peer = videomae_step(config, case)
    if peer is not None:
        peer()
        steps["videomae"] = peer
    limit.run()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            times[name].append(_seconds(step, case.device))
    found = {name: statistics.median(one) for name, one in times.items()}
    row: Row = {"case": case.name, "unit": "ms"}
    row |= {name: round(1e3 * seconds, 2) for name, seconds in found.items()}
    row["ours / limit"] = round(
        statistics.median(a / b for a, b in zip(times["ours"], times["limit"], strict=True)), 3
    )
    row["spread"] = round((max(times["ours"]) - min(times["ours"])) / found["ours"], 3)
    costs = estimate(config, case.cube_vx, case.batch, kind=case.kind)
    speed = costs.flops * case.batch / found["ours"]
    fastest = peak_speed(torch.device(case.device), case.kind)
    tokens = costs.tokens * case.batch / found["ours"]
    return [
        row,
        {"case": f"tokens/s, {case.name}", "unit": "1/s", "ours": round(tokens)},
        {
            "case": f"model FLOP utilisation, {case.name}",
            "unit": "1",
            "ours": round(speed / fastest, 3),
        },
        {
            "case": f"patchify + gather + loss + masks, share of {case.name}",
            "unit": "1",
            "ours": round(share_of_ours(train, case.device, listed), 4),
        },
    ]


def our_step(config: MaeConfig, case: Case) -> Callable[[], None]:
    """A whole step on one batch of bytes; every step hides other patches."""
    device = torch.device(case.device)
    model = Mae(config).to(device)
    settings = OptimConfig(clip_norm=1.0, weight_decay=0.05)
    optimiser = optim.adamw(model, settings)
    scaler = precision.grad_scaler("fp32", device)
    update = Update(model, optimiser, scaler, clip_norm=1.0, run=RunConfig())
    raw = torch.randint(0, 256, (case.batch, 1, *case.cube_vx), dtype=torch.uint8, device=device)
    scale, shift = torch.full((case.batch,), 1 / 255, device=device), raw.new_zeros(case.batch)
    voxels = Voxels(raw, scale, shift.float())
    drawn = iter(range(10**9))

    def step() -> None:
        keys = [(0, next(drawn)) for _ in range(case.batch)]
        with torch.autocast(device.type, dtype=case.kind, enabled=case.kind != torch.float32):
            masks = model.draw(voxels, keys, seed=0)
            prediction = model(voxels, masks)
            loss = error_of(prediction, voxels, masks, config.encoder.patch_vx)
        update(loss)

    return step


def videomae_step(config: MaeConfig, case: Case) -> Callable[[], None] | None:
    """The same by transformers, where it is installed."""
    try:
        from transformers import VideoMAEConfig, VideoMAEForPreTraining
    except ImportError:
        return None
    encoder, decoder, patch = config.encoder, config.decoder, config.encoder.patch_vx
    device = torch.device(case.device)
    peer = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=case.cube_vx[1],
            patch_size=patch[1],
            num_channels=1,
            num_frames=case.cube_vx[0],
            tubelet_size=patch[0],
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=4 * decoder.width,
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
    ).to(device)
    settings = OptimConfig(clip_norm=1.0, weight_decay=0.05)
    scaler = precision.grad_scaler("fp32", device)
    update = Update(peer, optim.adamw(peer, settings), scaler, clip_norm=1.0, run=RunConfig())
    z, y, x = case.cube_vx
    pixels = torch.rand(case.batch, z, 1, y, x, device=device)
    tokens = (z // patch[0]) * (y // patch[1]) * (x // patch[2])
    hidden = round(0.75 * tokens)

    def step() -> None:
        order = torch.rand(case.batch, tokens, device=device).argsort(1)
        masked = torch.zeros(case.batch, tokens, dtype=torch.bool, device=device)
        masked.scatter_(1, order[:, :hidden], True)
        with torch.autocast(device.type, dtype=case.kind, enabled=case.kind != torch.float32):
            loss = peer(pixels, bool_masked_pos=masked).loss
        update(loss)

    return step


# The limit ---------------------------------------------------------------------------------------


class Replay(TorchDispatchMode):
    """The matrix products and attention of a step, to be done again without the rest."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        with self:
            step()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        name = str(function)
        if any(part in name for part in ("mm.", "attention")) and "em_kernels" not in name:
            held = tuple(_like(one, name) for one in args)
            named = {key: _like(one, name) for key, one in (kwargs or {}).items()}
            self.calls.append((function, held, named))
        return found

    @torch.no_grad()
    def run(self) -> None:
        """Do them all."""
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


_POOL: dict[Any, Tensor] = {}


def _like(value: Any, name: str) -> Any:
    """A tensor of the same layout: one for all of the same, as memory is reused in training too."""
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.bfloat16):
        return value
    key = (tuple(value.shape), value.stride(), value.dtype, value.device, value.dim())
    if key not in _POOL:
        fresh = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )
        # The log of a sum of exponentials must not be small, lest backward overflow.
        _POOL[key] = (
            fresh.fill_(5.0) if "backward" in name and value.dim() == 3 else fresh.normal_()
        )
    return _POOL[key]


# Figures -----------------------------------------------------------------------------------------


def share_of_ours(step: Callable[[], None], device: str, listed: bool) -> float:
    """The share of a step that cutting, gathering, comparing and drawing take."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as measured:
        step()
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    averages = measured.key_averages()
    whole = sum(getattr(one, key) for one in averages)
    own = sum(getattr(one, key) for one in averages if any(part in one.key for part in OURS))
    if listed:
        print(averages.table(sort_by=key, row_limit=25, max_name_column_width=60))
    return own / whole


def _seconds(call: Callable[[], object], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

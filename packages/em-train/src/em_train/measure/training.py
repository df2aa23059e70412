"""How fast a recipe trains, how much of that is waiting for data, and how busy the device is.

Rounds with reading and rounds with one batch over and over take turns, so that what else the machine
does falls on both. The arithmetic of a step is counted by torch and set against a matrix product of
the same run, in the type that forward passes compute in: its share is the model FLOP utilisation. On
CUDA torch's profiler says how much of the device's time products of that kind take.
"""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from em_train.catalogue import Recipe
from em_train.engine import precision
from em_train.engine.device import choose_device

PEAK_S = 0.3  # for which a matrix product is repeated
SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1024}
# Of torch's operators, those that are matrix products at heart.
PRODUCTS = re.compile(r"mm$|conv|linear|attention")


def training_speed(recipe: Recipe, config: Any, *, steps: int, rounds: int) -> dict[str, Any]:
    """Speeds of a recipe's training step: `{machine, conditions, rows}`."""
    torch.manual_seed(config.run.seed)
    device = choose_device(config.run.device)
    precision.allow_tf32(config.run.tf32)
    rehearsal = recipe.rehearse(config, device)
    train = rehearsal.step
    coming = iter(rehearsal.loader.batches(0, (rounds + 1) * steps + 2))
    held = next(coming)
    train(held)
    with FlopCounterMode(display=False) as counter:
        train(held)
    flops = counter.get_total_flops()
    kind = precision.choose_type(config.run.precision, device)
    found: dict[str, list[float]] = {"fed": [], "waited": [], "held": [], "peak": []}
    for _ in range(steps):
        train(next(coming))  # settles threads, caches and the allocator
    for _ in range(rounds):
        waited, fed = _fed(train, coming, steps, device)
        found["fed"].append(fed)
        found["waited"].append(waited)
        found["held"].append(_seconds(lambda: train(held), steps, device))
        found["peak"].append(peak_speed(device, kind))
    images = len(held.raw)
    fed, still = (statistics.median(found[key]) / steps for key in ("fed", "held"))
    peak = statistics.median(found["peak"])
    waited = statistics.median(found["waited"]) / steps
    rows: list[dict[str, Any]] = [
        {"case": "samples/s with reading", "unit": "1/s", "ours": images / fed},
        {"case": "samples/s without reading", "unit": "1/s", "ours": images / still},
        {"case": "share of time waiting for data", "unit": "1", "ours": waited / fed},
        {"case": "FLOP of a step", "unit": "GFLOP", "ours": flops / 1e9},
        {"case": "arithmetic, with reading", "unit": "GFLOP/s", "ours": flops / fed / 1e9},
        {"case": "arithmetic of a matrix product", "unit": "GFLOP/s", "ours": peak / 1e9},
        {"case": "model FLOP utilisation", "unit": "1", "ours": flops / fed / peak},
    ]
    if device.type == "cuda":
        share = product_share(lambda: train(held), device)
        rows.append({"case": "share of time in products", "unit": "1", "ours": share})
    spread = (max(found["fed"]) - min(found["fed"])) / statistics.median(found["fed"])
    return {
        "machine": f"{_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "conditions": {
            "batch": images,
            "crop": list(held.raw.shape[1:]),
            "type": str(kind).removeprefix("torch."),
            "steps": steps,
            "rounds": rounds,
            "spread of the rounds": round(spread, 3),
        },
        "rows": [row | {"ours": float(f"{row['ours']:.4g}")} for row in rows],
    }


def show(recipe: str, figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    conditions = ", ".join(f"{key} {value}" for key, value in figures["conditions"].items())
    table = Table("", "", title=f"{recipe} on {figures['machine']}", caption=conditions)
    for row in figures["rows"]:
        unit = "" if row["unit"] == "1" else row["unit"]
        value = f"{row['ours']:.1%}" if row["unit"] == "1" else f"{row['ours']:,} {unit}"
        table.add_row(row["case"], value)
    Console().print(table)


def _fed(
    train: Callable[[Any], object], coming: Iterator[Any], steps: int, device: torch.device
) -> tuple[float, float]:
    """Seconds that some steps waited for their batches, and that they took in all."""
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(coming)
        waited += time.perf_counter() - asked
        train(batch)
    _wait(device)
    return waited, time.perf_counter() - began


def _seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    began = time.perf_counter()
    for _ in range(times):
        call()
    _wait(device)
    return time.perf_counter() - began


def peak_speed(device: torch.device, kind: torch.dtype) -> float:
    """FLOP a second of a square matrix product."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    a @ b
    _wait(device)
    once = max(_seconds(lambda: a @ b, 1, device), 1e-6)
    times = max(1, int(PEAK_S / once))
    return 2 * side**3 * times / _seconds(lambda: a @ b, times, device)


def product_share(step: Callable[[], object], device: torch.device) -> float:
    """Share of the device's time in a step that matrix products, convolutions and attention take."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as seen:
        _seconds(step, 3, device)
    time_of = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    times = {
        event.key: getattr(event, time_of)
        for event in seen.key_averages()
        if event.device_type.name == "CPU"  # its operators, not their kernels
    }
    products = sum(time for name, time in times.items() if PRODUCTS.search(name))
    return products / max(sum(times.values()), 1e-9)


def _wait(device: torch.device) -> None:
    """Wait for what was sent to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()

"""`python -m em_kernels.bench`: how fast each operator is, beside its peers and the memory.

Every case is measured in one process with its peers and its limit taking turns, under the same
allocator (huge pages for all), on buffers that are rotated, and after the same large tensor was
read, so that each call finds the caches full of the same clean lines. The limit is `copy_` of the
case's tensor. On CUDA ours and eager are also replayed from a CUDA graph, without the time that
Python takes to launch them. A result that differs from the formula's ends the run.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from em_kernels.bench_cases import Case

__all__ = ["main", "measure"]

STEMS = ("entropy", "divergence", "patches", "crops")
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")
GRAPHED = ("ours", "eager")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, and write what was asked for; 1 where a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m em_kernels.bench", description=__doc__)
    parser.add_argument("stems", nargs="*", choices=[*STEMS, []], help="operators; default all")
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write machine, conditions and rows")
    parser.add_argument("--plot", type=Path, help="write a PNG of the times over the limit")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    options = parser.parse_args(arguments)
    report = measure(
        options.stems or list(STEMS),
        quick=options.quick,
        threads=options.threads,
        device=options.device,
        compiled=not options.no_compile,
    )
    _print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.plot:
        _plot(report, options.plot)
    wrong = [row["case"] for row in report["rows"] if not row["correct"]]
    if wrong:
        print(f"wrong results: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


def measure(
    stems: list[str], *, quick: bool, threads: int, device: str, compiled: bool
) -> dict[str, Any]:
    """Return `{machine, conditions, rows}`."""
    # torch reads this at its first allocation: transparent huge pages for every tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    import torch

    from em_kernels import bench_cases
    from em_kernels.build import build_info

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rounds = 5 if quick else 20
    rows = []
    for stem in stems:
        for case in getattr(bench_cases, stem)(device, quick, compiled):
            rows.append(_measure_case(case, rounds, device, memory=not quick))
    return {
        "machine": _machine(device),
        "conditions": {
            "threads": threads,
            "device": device,
            "rounds": rounds,
            "quick": quick,
            "huge_pages": os.environ["THP_MEM_ALLOC_ENABLE"] == "1",
            **{key: str(value) for key, value in build_info().items()},
        },
        "rows": rows,
    }


def _measure_case(case: Case, rounds: int, device: str, memory: bool) -> dict[str, Any]:
    correct = _agree(case)
    times: dict[str, list[float]] = {name: [] for name in case.calls}
    timer = _seconds_cuda if device == "cuda" else _seconds
    for name in case.calls:  # warm, and compile
        timer(case, name, 0)
    for turn in range(rounds):
        for name in case.calls:
            times[name].append(timer(case, name, turn))
    row: dict[str, Any] = {"case": case.name, "unit": "ms", "correct": correct}
    for name, seconds in times.items():
        row[name] = statistics.median(seconds) * 1e3
    if device == "cuda":
        row |= {f"{name}_graph": _graph_milliseconds(case, name, rounds) for name in GRAPHED}
    ours = sorted(times["ours"])
    row["minimum"] = ours[0] * 1e3
    row["spread"] = (ours[len(ours) * 3 // 4] - ours[len(ours) // 4]) * 1e3
    row["gb_per_s"] = case.gigabytes / (row["ours"] / 1e3)
    row["times_limit"] = row["ours"] / row["limit"]
    for name in case.calls:
        # Small tensors come from memory that the process keeps, and show nothing.
        if memory and name != "limit":
            row[f"{name}_mb"] = _peak_megabytes(case, name, device)
    return row


def _agree(case: Case) -> bool:
    """Whether ours equals eager, without NaN."""
    import numpy as np

    for ours, eager in zip(_results(case, "ours"), _results(case, "eager"), strict=True):
        error = np.abs(ours - eager).max(initial=0)
        if not error <= case.tolerance * max(np.abs(eager).max(initial=0), 1e-30):
            return False
    return True


def _results(case: Case, name: str) -> Iterator[Any]:
    import torch

    result = case.calls[name](0) if name not in case.prepare else _prepared(case, name, 0)()
    for value in result if isinstance(result, tuple) else (result,):
        if isinstance(value, torch.Tensor):
            yield value.detach().double().cpu().numpy()
        else:
            yield value.astype("float64")


def _prepared(case: Case, name: str, turn: int) -> Callable[[], Any]:
    if name in case.prepare:
        given = case.prepare[name](turn)
        return lambda: case.calls[name](given)
    return lambda: case.calls[name](turn)


@cache
def _large() -> Any:
    import torch

    return torch.ones(1 << 25)  # 128 MiB, more than the caches of most machines


def _seconds(case: Case, name: str, turn: int) -> float:
    call = _prepared(case, name, turn)
    _large().sum()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _seconds_cuda(case: Case, name: str, turn: int) -> float:
    """By events around a queue that is never empty, so that launches cost nothing."""
    import torch

    calls = [_prepared(case, name, turn + i) for i in range(8)]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(10_000_000)  # cycles, while the launches below are queued
    start.record()
    for call in calls:
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / len(calls)


def _graph_milliseconds(case: Case, name: str, rounds: int) -> float | None:
    """The median time of a call that is replayed from a CUDA graph; None where it cannot be one."""
    import torch

    call = _prepared(case, name, 0)
    if name in case.prepare or not _on_cuda(call()):
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the allocator and autograd settle before anything is recorded
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return None
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(8):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 8)
    return statistics.median(times)


def _on_cuda(result: Any) -> bool:
    """Whether a result, or the first of several, lies on a GPU."""
    first = result[0] if isinstance(result, tuple) else result
    return bool(getattr(first, "is_cuda", False))


def _peak_megabytes(case: Case, name: str, device: str) -> float | None:
    """What one call needs on top of what is there; None where the system does not say."""
    import torch

    call = _prepared(case, name, 0)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - allocated) / 1e6
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(reset, os.W_OK):
        return None
    reset.write_text("5")  # sets the peak (VmHWM) to the present
    before = _status_megabytes(status, "VmRSS")
    call()
    return max(_status_megabytes(status, "VmHWM") - before, 0.0)


def _status_megabytes(status: Path, key: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def _machine(device: str) -> dict[str, Any]:
    """This machine, in the keys of every benchmark of the repository (tools/bench/record.py)."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if known.get(name)],
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _print_table(report: dict[str, Any]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise ImportError(
            "the table needs rich; pip install rich, or 'em-kernels[bench]'"
        ) from error
    table = Table(title="median times in ms")
    columns = ("case", "ours", "min", "spread", "eager", "compile", "limit", "× limit", "GB/s")
    for column in (*columns, "MB", "eager MB"):
        table.add_column(column, justify="left" if column == "case" else "right")
    keys = ("ours", "minimum", "spread", "eager", "compile", "limit", "times_limit", "gb_per_s")
    for row in report["rows"]:
        cells = [row.get(key) for key in (*keys, "ours_mb", "eager_mb")]
        texts = ["–" if cell is None else f"{cell:.2f}" for cell in cells]
        table.add_row(row["case"] + ("" if row["correct"] else "  WRONG"), *texts)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    conditions = report["conditions"]
    console.print(
        f"{report['machine']['cpu']}, {conditions['threads']} thread(s), {conditions['device']},"
        f" {conditions['isa_in_use']}, torch {report['machine']['torch']}"
    )


def _plot(report: dict[str, Any], path: Path) -> None:
    """Draw a bar for each time over the limit, on a scale by the logarithm."""
    import math

    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise ImportError("--plot needs pillow; pip install 'em-kernels[bench]'") from error
    colours = {"ours": "#1b7837", "eager": "#762a83", "compile": "#9970ab"}
    bars = [
        (row["case"], name, row[name] / row["limit"])
        for row in report["rows"]
        for name in colours
        if name in row
    ]
    left, width, height, low = 460, 460, 18, 0.5
    image = Image.new("RGB", (left + width + 80, height * (len(bars) + 3)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((8, 4), "time over that of copy_ (line), by the logarithm", fill="black")
    per_octave = width / math.log2(max(2.0, *(value for *_, value in bars)) / low)

    def place(value: float) -> float:
        return left + max(math.log2(value / low), 0.02) * per_octave

    for i, (case, name, value) in enumerate(bars):
        top = height * (i + 2)
        draw.text((8, top + 2), f"{case}  {name}", fill="black")
        draw.rectangle((left, top + 2, place(value), top + height - 3), fill=colours[name])
        draw.text((place(value) + 6, top + 2), f"{value:.2f}", fill="black")
    line = place(1.0)
    draw.line((line, height * 1.5, line, height * (len(bars) + 2.5)), fill="black")
    image.save(path)


if __name__ == "__main__":
    sys.exit(main())

"""What every benchmark leaves: the machine, the conditions, the rows; as JSON and as a table.

Here because a figure without its machine says nothing, and because figures of two benchmarks can only
be read together where their files have one shape: `{machine, conditions, rows}`, each row flat.
`python -m em_kernels.bench` has a machine entry of its own with the same keys: it runs without this
repository.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

# What decides how fast a processor multiplies, by the names of `torch.cpu.get_capabilities`.
INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve", "bf16")

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """This machine as it is now, with the threads that torch computes with."""
    known = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if known.get(name)],
        "memory_gib": memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # processes that want a core, mean of a minute
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def cpu_name() -> str:
    """The name that the processor gives itself."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """The memory of the machine, where the system says it."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


def in_words(found: Row) -> str:
    """A machine in one line.

    >>> in_words({"cpu": "EPYC", "cores": 2, "instructions": ["avx2"], "threads": 1, "torch": "2.15"})
    'EPYC, 2 cores (avx2), 1 thread, torch 2.15'
    """
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}"
    instructions = " ".join(found["instructions"]) or "no known instructions"
    parts = [found["cpu"], f"{found['cores']} cores ({instructions})"]
    parts += [f"{found['memory_gib']} GiB"] if found.get("memory_gib") else []
    parts += [found["gpu"]] if found.get("gpu") else []
    return ", ".join([*parts, threads, f"torch {found['torch']}"])


def write(path: Path, conditions: Row, rows: Sequence[Row], **more: Any) -> None:
    """Write the record, whole or not at all; `more` is what a benchmark needs to go on."""
    record = {"machine": machine(), "conditions": conditions, "rows": rows, **more}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table of all their keys, and the machine below.

    Rows that were to hold (`held`) are marked where they did not, and what else they say is put into
    one last column.
    """
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "held"))
    first = [key for key in ("case", "unit", "ours", "limit") if key in keys]
    judged = any("held" in row for row in rows)
    columns = first if judged else keys
    table = Table(*columns, *(["what else"] if judged else []))
    for row in rows:
        cells = [str(row.get(key, "")) for key in columns]
        if judged:
            cells[columns.index("ours")] += "" if row["held"] else "  FAILED"
            cells.append(", ".join(f"{k}: {row[k]}" for k in keys if k in row and k not in columns))
        table.add_row(*cells)
    print_table(table, width=None if judged else 200)


def print_table(table: Table, width: int | None = None) -> None:
    """Print a table of figures, and the machine below it."""
    console = Console(width=width)
    console.print(table)
    console.print(in_words(machine()), markup=False, highlight=False, soft_wrap=True)

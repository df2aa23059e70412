"""Try every command at every door, and count what was refused in good order, what worked, what is a defect.

    python tools/bench/train/doors.py --json doors.json
    python tools/bench/train/doors.py --quick
    python tools/bench/train/doors.py --only "predict × zarr-*"

The doors are odd volumes, run folders damaged in every file, hostile values of options; they and the rule
stand in tests/doors. A defect is a traceback, a wrong exit code, a message that names neither the thing
nor a remedy, something written, or more than a minute.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # commands at doors run side by side

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

sys.path.pop(0)  # where `doors` is this file
sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))

import torch
from doors import arena, cases
from doors.known import known
from doors.trial import Case, Verdict
from rich.console import Console
from rich.progress import track
from rich.table import Table

QUICK = 150  # cases, of each command some
COLUMNS = ("tried", "clean", "fine", "defect", "known")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} cases")
    parser.add_argument("--count", type=int, help="so many cases, of each command about as many")
    parser.add_argument("--only", metavar="PATTERN", help="cases like this: 'COMMAND × DOOR'")
    parser.add_argument("--seed", type=int, default=0, help="of the choice with --count or --quick")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    count = options.count or (QUICK if options.quick else None)
    chosen = cases.chosen(count, options.seed) if count else cases.all_cases()
    if options.only:
        chosen = [case for case in cases.all_cases() if fnmatchcase(case.id, options.only)]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = try_all(Path(folder), chosen, options.jobs)
    rows = tabulate(verdicts)
    show(rows)
    defects = [verdict for verdict in verdicts if verdict.outcome == "defect"]
    if options.json:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
        conditions = {
            **{"seed": options.seed, "jobs": options.jobs, "cases": len(chosen)},
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        found = [
            {
                "case": v.case.id,
                "why": v.why,
                "typed": v.typed,
                "said": v.said,
                "seconds": v.seconds,
            }
            for v in defects
        ]
        report = {"machine": machine, "conditions": conditions, "rows": rows, "defects": found}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(any(not known(one.case.id) for one in defects))


def try_all(folder: Path, chosen: Sequence[Case], jobs: int) -> list[Verdict]:
    """Try cases, some at once."""
    bench = arena.build(folder)
    verdicts = []
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(bench.try_case, chosen)
        for one in track(found, total=len(chosen), description="doors"):
            verdicts.append(one)
            if one.outcome == "defect":
                mark = "known " if known(one.case.id) else ""
                print(
                    f"{mark}{one.case.id}\n    {one.why}\n    {last_line(one.said)!r}", flush=True
                )
    return verdicts


def tabulate(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """What came of the cases, by command and group of doors."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for one in verdicts:
        row = counts.setdefault((one.case.command, one.case.group), Counter())
        row["tried"] += 1
        row[one.outcome if not known(one.case.id) or one.outcome != "defect" else "known"] += 1
    return [
        {"case": f"{command} × {group}", "unit": "cases", **{c: row[c] for c in COLUMNS}}
        for (command, group), row in sorted(counts.items())
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, and its sums."""
    table = Table("command × door", *COLUMNS)
    for row in rows:
        table.add_row(row["case"], *(str(row[c] or "") for c in COLUMNS))
    table.add_section()
    table.add_row("all", *(str(sum(row[c] for row in rows)) for c in COLUMNS))
    Console(width=100).print(table)


def last_line(said: str) -> str:
    """The end of what a command said."""
    return said.strip().rpartition("\n")[2][-300:]


if __name__ == "__main__":
    main()

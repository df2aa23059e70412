"""Build, test and measure on the GPU of this machine, with the torch that is here: `tools/gpu`.

Each stage is a process of its own that is ended when its time is over, so that one that hangs costs
no other its turn. A stage whose needs are missing is skipped and says what they are. All of it is
written to `gpu.json`, the table to `gpu.md`; what the stages said lies in `logs/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "gpu"  # em-kernels, compiled for this GPU
SOURCES = [ROOT / "packages" / name / "src" for name in ("em-data", "em-models", "em-losses")]
SOURCES.append(ROOT / "packages" / "em-train" / "src")
# Each with the preset whose step is worth a GPU, on a volume that is generated.
RECIPES = {
    "dense-ssl": ["--set", 'data.volumes=["synthetic:shape=32x384x384"]'],
    "mae": [
        *("--preset", "small", "--set", 'data.volumes=["synthetic:shape=128x256x256"]'),
        *("--set", "data.checked_cubes=8"),
    ],
    "segment": ["--preset", "demo"],
    "restore": [
        *("--set", 'data.volumes=["synthetic:shape=32x512x512"]', "--set", "data.patch_vx=256"),
        *("--set", "loss.adversary=.01"),
    ],
}
OPERATORS = """
import torch
from em_kernels.divergence import divergence_sums
from em_kernels.entropy import entropy_sums
from em_kernels.patches import patchify, reconstruction_sums, unpatchify
for kind in (torch.float32, torch.bfloat16):
    a, b = (torch.randn(2, 50, 37, 21, device="cuda", dtype=kind, requires_grad=True) for _ in range(2))
    entropy_sums(a).entropy.backward()
    divergence_sums(a, b).cross_entropy.backward()
volume = torch.randn(2, 1, 16, 32, 32, device="cuda")
tokens = patchify(volume, (8, 8, 8)).requires_grad_()
assert torch.equal(unpatchify(tokens, (8, 8, 8), (16, 32, 32)), volume)
reconstruction_sums(tokens, volume, (8, 8, 8)).squared_error.backward()
torch.cuda.synchronize()
"""
TWO_RANKS = """
import torch
from torch import nn
from em_train.engine import distributed
with distributed.joined(cuda=True):
    rank, device = distributed.rank(), torch.device("cuda", distributed.local_rank())
    torch.manual_seed(0)
    x, net = torch.randn(4, 8, dtype=torch.float64), nn.Linear(8, 3).double()
    whole = torch.autograd.grad(net(x).square().mean(), [*net.parameters()])
    net.to(device)
    loss = distributed.parallel(lambda networks, x: networks(x).square().mean(), net)
    loss(x[2 * rank : 2 * rank + 2].to(device)).backward()
    for parameter, gradient in zip(net.parameters(), whole):
        torch.testing.assert_close(parameter.grad.cpu(), gradient, rtol=1e-12, atol=1e-12)
    total = distributed.reduce(torch.tensor([1.0 + rank], device=device))
    assert float(total) == 3.0, total
"""


@dataclass(kw_only=True)
class Stage:
    """One process: what it needs, how long it may take, and what came of it."""

    name: str
    command: list[str]
    seconds: float  # at most
    needs: list[str] = field(default_factory=list)  # what is missing of what it needs
    figures: Path | None = None  # JSON that it writes
    state: str = "not begun"
    took_s: float = 0.0
    why: str = ""
    found: dict[str, Any] | None = None

    def run(self, deadline: float, folder: Path) -> None:
        """Run it, for as long as it may and no longer than until the deadline."""
        allowed = min(self.seconds, deadline - time.monotonic())
        if self.needs:
            self.state, self.why = "skipped", "missing: " + ", ".join(self.needs)
        elif allowed < 5:
            self.state, self.why = "skipped", "no time left"
        else:
            self._run(allowed, folder / "logs" / f"{self.name.replace(' ', '-')}.txt")
        took = f" after {self.took_s:.0f} s" if self.took_s else ""
        print(f"gpu: {self.name}: {self.state}{took}{self.why and ': ' + self.why}", flush=True)

    def _run(self, allowed: float, log: Path) -> None:
        began = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(map(str, [BUILT, *SOURCES]))
        with log.open("w") as told:
            process = subprocess.Popen(
                self.command,
                stdout=told,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "160"},
                start_new_session=True,  # so that what it starts ends with it
            )
            try:
                code = process.wait(allowed)
                self.state = "done" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                self.state = "out of time"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        self.took_s = time.monotonic() - began
        if self.state != "done":
            lines = log.read_text(errors="replace").strip().splitlines()
            self.why = lines[-1][-200:] if lines else ""
        if self.figures and self.figures.exists():
            self.found = json.loads(self.figures.read_text())


def missing(*modules: str, programs: tuple[str, ...] = ()) -> list[str]:
    """Those of the modules and programs that this machine does not have."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return absent + [name for name in programs if find_program(name) is None]


def find_program(name: str) -> str | None:
    """A program on PATH, or of the CUDA toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=str(Path(home, "bin")))


def plan(out: Path, gpus: int) -> list[Stage]:
    """All stages, in the order of what is most worth knowing."""
    python = sys.executable
    compiler = missing("setuptools", programs=("nvcc", os.environ.get("CXX", "c++")))
    tests = sorted((ROOT / "tests" / "kernels").glob("test_*.py"))
    tests += sorted((ROOT / "tests" / "data").rglob("test_loader.py"))
    setup = "import os, runpy, sys; os.chdir(sys.argv.pop(1)); runpy.run_path('setup.py')"
    stages = [
        Stage(
            name="build em-kernels",
            command=[
                *(python, "-c", setup, str(ROOT / "packages" / "em-kernels")),
                *("build", "--build-lib", str(BUILT)),
            ],
            seconds=240,
            needs=compiler,
        ),
        Stage(
            name="tests",
            command=[
                *(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"),
                *("-k", "cuda_matches or sent_ahead", *map(str, tests)),
            ],
            seconds=150,
            needs=missing("pytest", "zarr"),
        ),
        Stage(
            name="two ranks over NCCL",
            command=[
                *(python, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                str(out / "two_ranks.py"),
            ],
            seconds=60,
            needs=["a second GPU"] if gpus < 2 else [],
        ),
        Stage(
            name="compute-sanitizer",
            command=[
                *(
                    find_program("compute-sanitizer") or "compute-sanitizer",
                    "--error-exitcode",
                    "1",
                ),
                *(python, "-c", OPERATORS),
            ],
            seconds=90,
            needs=missing(programs=("compute-sanitizer",)),
        ),
        Stage(
            name="kernels",
            command=[
                *(python, "-m", "em_kernels.bench", "--device", "cuda", "--no-compile"),
                *("--json", str(out / "kernels.json")),
            ],
            seconds=120,
            needs=missing("rich"),
            figures=out / "kernels.json",
        ),
    ]
    for recipe, options in RECIPES.items():
        report = out / f"{recipe}.json"
        stages.append(
            Stage(
                name=f"train {recipe}",
                command=[
                    *(python, "-m", "em_train.cli", "bench-train", recipe, *options),
                    *("--rounds", "3", "--json", str(report)),
                ],
                seconds=75,
                needs=missing("zarr", "timm", "typer", "pydantic", "rich", "safetensors", "PIL"),
                figures=report,
            )
        )
    return stages


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    machine, stages = report["machine"], report["stages"]
    lines = [", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    lines += _table(
        ["stage", "", "s", ""],
        [[s["name"], s["state"], f"{s['took_s']:.0f}", s["why"]] for s in stages],
    )
    found = {s["name"]: s["found"]["rows"] for s in stages if s["found"]}
    if rows := found.pop("kernels", None):
        keys = ["ours", "ours_graph", "eager", "eager_graph", "limit", "gb_per_s", "times_limit"]
        titles = ["ours", "in a graph", "eager", "in a graph", "`copy_`", "GB/s", "ours / `copy_`"]
        lines += ["Median milliseconds of every operator:", ""]
        lines += _table(
            ["case", *titles],
            [[row["case"], *(_number(row.get(key)) for key in keys)] for row in rows],
        )
    if found:
        cases = list(dict.fromkeys(row["case"] for rows in found.values() for row in rows))
        steps = {
            name.removeprefix("train "): {row["case"]: row for row in rows}
            for name, rows in found.items()
        }
        lines += ["The training step of every recipe:", ""]
        lines += _table(
            ["", *steps],
            [[case, *(_value(rows.get(case)) for rows in steps.values())] for case in cases],
        )
    return "\n".join(lines)


def _table(titles: list[str], rows: list[list[str]]) -> list[str]:
    every = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(row) + " |" for row in every] + [""]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _value(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['ours']:.1%}" if row["unit"] == "1" else f"{row['ours']:,} {row['unit']}"


def main(arguments: list[str] | None = None) -> int:
    """Run all stages; 1 where one failed, or where nothing can be run."""
    parser = argparse.ArgumentParser(prog="tools/gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="where to write")
    parser.add_argument("--minutes", type=float, default=10, help="after which it ends")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes - 5
    if missing("torch"):
        return _refuse(f"{sys.executable} has no torch")
    import torch

    if not torch.cuda.is_available():
        return _refuse(f"torch {torch.__version__} of {sys.executable} sees no GPU here")

    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "two_ranks.py").write_text(TWO_RANKS)
    stages = plan(out, torch.cuda.device_count())
    for stage in stages:
        stage.run(deadline, out)
        if stage.name == "build em-kernels" and stage.state != "done":
            for other in stages:
                if other.name in ("tests", "compute-sanitizer", "kernels"):
                    other.needs.append("em-kernels")
    report = {
        "machine": {
            "GPU": f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}",
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "Python": platform.python_version(),
        },
        "stages": [
            {k: v for k, v in asdict(stage).items() if k not in ("command", "figures", "needs")}
            for stage in stages
        ],
    }
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "gpu.md").write_text(tables(report))
    print(f"gpu: look at {out / 'gpu.md'}; {out / 'gpu.json'} holds everything")
    return int(any(stage.state in ("failed", "out of time") for stage in stages))


def _refuse(why: str) -> int:
    print(f"gpu: {why}; name another one: PYTHON=/path/to/python tools/gpu", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Kill training at random instants, over and over, and see whether anything is lost.

    python tools/bench/train/kill.py --json kills.json
    python tools/bench/train/kill.py --quick

kills     kill -9 of one or all processes of runs of every recipe with one and two ranks, at least one
          new checkpoint between two kills: no checkpoint may be corrupt, nobody may stay behind, and
          the finished run must equal the one that was left alone, bit for bit.
signals   SIGTERM and SIGUSR1 at random steps: a checkpoint and exit code 75 in less than 20 s.
elastic   a worker of `emtrain --processes 2` is killed: going on within one restart; and the launcher
          itself: no worker stays behind.

Processes of the first two parts are forked from one that has imported torch, which saves seconds per
kill; those of the third are what a person starts.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # no threads before a fork

import argparse
import importlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from em_losses import kernels_in_use
from em_train import cli
from em_train.engine import checkpoint
from em_train.engine.stop import SAVED
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import show, write

# Imported before the forks, because a run imports them.
HEAVY = (
    *("em_train.recipes.dense_ssl", "em_train.recipes.segment", "em_train.recipes.mae"),
    "em_train.recipes.restore",
    "em_train.engine.launch",
    "torch._dynamo",
    "PIL.PngImagePlugin",
)
KERNELS = ("em_kernels.entropy", "em_kernels.divergence", "em_kernels.crops")
ENGINE = (
    *("run.device=cpu", "run.log_every=1", "run.checkpoint_every=1", "run.picture_every=100000"),
    *("run.ema_decay_end=1.0", "data.batch_size=2"),
)
# The least that each recipe trains with.
SETTINGS = {
    "dense-ssl": (
        *("data.stack.size_vx=61", "model.encoder.pools=[]", "model.encoder.classes=8"),
        *("model.predictor_width=8", "loss.classes_at_least=6"),
    ),
    "segment": (
        *("data.patch_vx=32", "data.depth_vx=2", "data.samples_per_epoch=8"),
        *("model.unet.channels=[4,6,8]", "model.unet3d.channels=[3,4]"),
        *("model.unet3d.kernels_z=[1,3]", "model.unet3d.strides_z=[1]"),
    ),
    "mae": (
        *("data.cube.size_vx=[4,32,32]", "data.checked_cubes=2", "data.samples_per_epoch=8"),
        *("data.split.last_z=0.35", "model.encoder.width=24", "model.encoder.depth=1"),
        *("model.encoder.heads=2", "model.encoder.patch_vx=[2,8,8]", "model.decoder.width=12"),
        *("model.decoder.depth=1", "model.decoder.heads=2"),
    ),
    "restore": (
        *("data.patch_vx=32", "data.samples_per_epoch=8", "data.checked_crops=2"),
        *("model.unet.channels=[4,6,8]", "loss.adversary=.01", "loss.r1_every=2"),
        *("model.discriminator.channels=4", "model.discriminator.layers=1"),
    ),
}
LABELS = ("--labels", "membrane=classes@1", "--labels", "mitochondria=classes@2")
CLOCK = ("_per_s", "waiting")  # how names of what depends on the time of day end
SAVE_S = 20.0  # between a signal and the exit
ENDS_S = 30.0  # between the death of one process and the end of the others
STARTS_S = 120.0  # between a start and the first new checkpoint, on a busy machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=[*SETTINGS, "all"], default="all", help="of kills")
    parser.add_argument("--kills", type=int, default=50, help="of each recipe, with 1 and 2 ranks")
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--elastic", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.signals, options.elastic = 1, 4, 1
    rng = random.Random(options.seed)
    for name in HEAVY + (KERNELS if kernels_in_use() else ()):
        importlib.import_module(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), rng, steps=8 if options.quick else 60)
        recipes = [*SETTINGS] if options.recipe == "all" else [options.recipe]
        rows = [
            kill_runs(arena, recipe, options.kills, ranks) for recipe in recipes for ranks in (1, 2)
        ]
        rows += ask_runs(arena, options.signals)
        rows += kill_workers(arena, options.elastic)
    show(rows)
    if options.json:
        conditions = {
            "seed": options.seed,
            "settings": {"all": ENGINE, **SETTINGS},
            "minutes": round((time.monotonic() - began) / 60, 1),
        }
        write(options.json, conditions, rows)
    sys.exit(any(not row["held"] for row in rows))


class Arena:
    """Where runs are started and compared."""

    def __init__(self, folder: Path, rng: random.Random, steps: int) -> None:
        self.folder, self.rng, self.steps = folder, rng, steps
        voxels = np.random.default_rng(0).integers(0, 255, (12, 96, 96), np.uint8)
        np.save(folder / "raw.npy", voxels)
        self._count = 0

    def new_run(self, recipe: str = "dense-ssl") -> Path:
        """A path for a run."""
        self._count += 1
        return self.folder / f"{recipe}-{self._count}"

    def arguments(self, run: Path, steps: int | None = None) -> list[str]:
        """The command that begins a run, or goes on with it."""
        recipe = run.name.rpartition("-")[0]
        settings = [*ENGINE, *SETTINGS[recipe], f"run.steps={steps or self.steps}"]
        sets = [part for one in (*settings, "optim.warmup_steps=2") for part in ("--set", one)]
        data = ["--data", str(self.folder / "raw.npy")]
        if recipe == "segment":
            data = ["--data", "synthetic:shape=10x80x80,seed=1", *LABELS]
        again = ["--resume"] if (run / "config.json").exists() else []
        return [recipe, *data, "--out", str(run), *sets, *again]

    def fork(self, run: Path, ranks: int, steps: int | None = None) -> list[int]:
        """Start the processes of a run."""
        arguments, port = self.arguments(run, steps), free_port()
        return [self._fork_one(arguments, rank, ranks, port, run) for rank in range(ranks)]

    def _fork_one(
        self, arguments: Sequence[str], rank: int, ranks: int, port: int, run: Path
    ) -> int:
        child = os.fork()
        if child == 0:
            self._be_one(arguments, rank, ranks, port, run)
        return child

    def _be_one(
        self, arguments: Sequence[str], rank: int, ranks: int, port: int, run: Path
    ) -> NoReturn:
        with (self.folder / f"{run.name}-rank{rank}.err").open("a") as errors:
            os.dup2(errors.fileno(), 1)
            os.dup2(errors.fileno(), 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        become(arguments)

    def errors(self, run: Path) -> str:
        """What the processes of a run said last."""
        said = [path.read_text()[-600:] for path in self.folder.glob(f"{run.name}-rank*.err")]
        return "\n".join(said)


def become(arguments: Sequence[str]) -> NoReturn:
    """Be `emtrain` with these arguments, and nothing else any more."""
    sys.argv = ["emtrain", *arguments]
    code: Any = 1
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    finally:
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return False


def ended(process: int, codes: dict[int, int]) -> bool:
    """Whether a child has ended; its exit code is kept."""
    if process not in codes:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            codes[process] = os.waitstatus_to_exitcode(status)
    return process in codes


def kill_runs(arena: Arena, recipe: str, kills: int, ranks: int) -> dict[str, Any]:
    """Kill runs of so many ranks until they were killed so often, then let the last one finish."""
    alone = arena.new_run(recipe)
    codes: dict[int, int] = {}
    for process in (started := arena.fork(alone, ranks)):
        wait_until(lambda p=process: ended(p, codes), 600)  # type: ignore[misc]
    assert [codes[p] for p in started] == [0] * ranks, arena.errors(alone)
    done = corrupt = orphans = finished = different = 0
    bar = iter(track(range(kills), description=f"kill -9, {recipe}, ranks: {ranks}"))
    next(bar, None)
    while done < kills:
        run, reached = arena.new_run(recipe), -1
        while True:
            processes, codes = arena.fork(run, ranks), {}
            checkpoints = run / "checkpoints"

            def all_ended(processes: list[int] = processes, codes: dict[int, int] = codes) -> bool:
                return all(ended(process, codes) for process in processes)

            def moves(
                reached: int = reached, at: Path = checkpoints, done: Any = all_ended
            ) -> bool:
                return checkpoint.newest(at) > reached or done()

            assert wait_until(moves, STARTS_S), f"no new step\n{arena.errors(run)}"
            if done < kills:
                time.sleep(arena.rng.expovariate(1 / 0.06))
            else:
                wait_until(all_ended, 600)
            if not all_ended() and done < kills:
                victims = arena.rng.choice([processes, *([p] for p in processes)])
                for victim in victims:
                    if victim not in codes:
                        os.kill(victim, signal.SIGKILL)
                done += 1
                next(bar, None)
                if not wait_until(all_ended, ENDS_S):
                    for process in processes:
                        if not ended(process, codes):
                            orphans += 1
                            os.kill(process, signal.SIGKILL)
                            os.waitpid(process, 0)
                corrupt += count_corrupt(checkpoints)
                assert checkpoint.newest(checkpoints) > reached
                reached = checkpoint.newest(checkpoints)
                continue
            assert [codes[p] for p in processes] == [0] * ranks, arena.errors(run)
            break
        finished += 1
        different += not same(alone, run)
    next(bar, None)
    return {
        "case": f"kill -9, {recipe}, ranks: {ranks}",
        "unit": "of",
        "ours": done,
        "corrupt checkpoints": corrupt,
        "left behind": orphans,
        "finished runs": finished,
        "of them not bit-identical": different,
        "limit": kills,
        "held": done >= kills and not (corrupt or orphans or different) and finished > 0,
    }


def count_corrupt(checkpoints: Path) -> int:
    """Checkpoints under their final name that are not whole."""
    corrupt = 0
    for path in checkpoints.glob("step-*.pt"):
        try:
            checkpoint.read(path)
        except checkpoint.DAMAGE:
            corrupt += 1
    return corrupt


def same(a: Path, b: Path) -> bool:
    """Whether two finished runs measured and learned the same, bit for bit."""
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if not key.endswith(CLOCK)}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (a, b)
    ]
    states = [checkpoint.load(run / "checkpoints") for run in (a, b)]
    weights = [
        {str(w.relative_to(run)): w.read_bytes() for w in run.rglob("*.safetensors")}
        for run in (a, b)
    ]
    return rows[0] == rows[1] and equal(*states) and weights[0] == weights[1] != {}


def equal(a: Any, b: Any) -> bool:
    """Whether two trees of tensors and plain values are the same."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def ask_runs(arena: Arena, times: int) -> list[dict[str, Any]]:
    """Ask runs of one and two ranks to stop, at random steps; one rank hears it, all leave."""
    held, slowest = 0, 0.0
    for turn in track(range(times), description="SIGTERM and SIGUSR1"):
        run, ranks = arena.new_run(), 1 + turn % 2
        processes = arena.fork(run, ranks, steps=100_000)
        number = (signal.SIGTERM, signal.SIGUSR1)[turn // 2 % 2]
        after = arena.rng.randint(1, 12)
        assert wait_until(lambda: checkpoint.newest(run / "checkpoints") >= after, STARTS_S)  # noqa: B023
        time.sleep(arena.rng.random() * 0.1)
        began, codes = time.monotonic(), {}
        os.kill(arena.rng.choice(processes), number)
        left = wait_until(lambda: all(ended(p, codes) for p in processes), 2 * SAVE_S)  # noqa: B023
        took = time.monotonic() - began
        for process in processes:
            if process not in codes:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        rows = (run / "metrics.jsonl").read_text().splitlines()
        saved = checkpoint.load(run / "checkpoints")["step"] == json.loads(rows[-1])["step"]
        in_order = left and set(codes.values()) == {SAVED} and took < SAVE_S
        held += in_order and saved
        slowest = max(slowest, took)
    return [
        {
            "case": "SIGTERM or SIGUSR1: saved, exit code 75",
            "unit": "of",
            "ours": held,
            "slowest (s)": round(slowest, 2),
            "limit": times,
            "held": held == times,
        }
    ]


def kill_workers(arena: Arena, times: int) -> list[dict[str, Any]]:
    """Kill workers under torch elastic, and last the launcher."""
    run, errors = arena.new_run(), arena.folder / "launcher.err"
    command = [sys.executable, "-m", "em_train.cli", *arena.arguments(run, steps=100_000)]
    with errors.open("w") as file:
        launcher = subprocess.Popen([*command, "--processes", "2"], stderr=file)
    recovered, slowest, reached = 0, 0.0, -1
    for turn in track(range(times), description="worker killed under elastic"):
        newest = lambda: checkpoint.newest(run / "checkpoints")  # noqa: E731
        assert wait_until(lambda: newest() > reached + 1, STARTS_S), errors.read_text()  # noqa: B023
        time.sleep(arena.rng.random() * 0.2)
        workers = children(launcher.pid)
        assert len(workers) == 2, workers
        began = time.monotonic()
        os.kill(arena.rng.choice(workers), signal.SIGKILL)
        gone = wait_until(lambda: not set(workers) & set(children(launcher.pid)), 60)  # noqa: B023
        reached = newest()
        back = wait_until(lambda: newest() > reached or launcher.poll() is not None, STARTS_S)  # noqa: B023
        slowest = max(slowest, time.monotonic() - began)
        once = errors.read_text().count("starting again") == turn + 1
        recovered += gone and back and once and launcher.poll() is None
    workers = children(launcher.pid)
    launcher.kill()
    launcher.wait()
    orphans = not wait_until(lambda: not any(map(alive, workers)), 10)
    for worker in filter(alive, workers):
        os.kill(worker, signal.SIGKILL)
    return [
        {
            "case": "worker killed under elastic: going on after one restart",
            "unit": "of",
            "ours": recovered,
            "slowest (s)": round(slowest, 1),
            "corrupt checkpoints": count_corrupt(run / "checkpoints"),
            "limit": times,
            "held": recovered == times,
        },
        {
            "case": "launcher killed: workers left behind",
            "unit": "workers",
            "ours": int(orphans),
            "limit": 0,
            "held": len(workers) == 2 and not orphans,
        },
    ]


def children(process: int) -> list[int]:
    """The Python processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == process and rest.split()[0] != "Z" and "python" in name:
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()

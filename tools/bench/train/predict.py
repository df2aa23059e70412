"""Predict a volume in every way there is, kill it on the way, and see whether a byte changes.

    python tools/bench/train/predict.py --json predict.json
    python tools/bench/train/predict.py --quick

bytes     other blocks, two processes, two Dask workers: the hash of all voxel files is that of one
          process that was left alone.
kills     kill -9 of workers and of the whole job at random instants, with processes, with Dask and of
          one process alone: the same hash, no block that had its marker begun again, nobody left
          behind.
missing   a block that disappears: a non-zero exit code, and no store.
seams     the error against one run of the network on whole slices, at the borders of tiles and blocks
          and inside.
memory    what a process takes beyond the loaded network, against what it said it would.

The volume is 512³ voxels: synthetic tissue of 128³, mirrored. The network is small, so that a pass
takes a minute or two of one core.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import em_models
import numpy as np
import torch
from em_data import Box, begin_blocks, grey_range, new_store, open_volume
from em_data.synthetic import SyntheticConfig, render
from em_data.writer.block_cost import block_figures
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.predict import volume as predict
from em_train.recipes import segment

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import show, write

MODULE = "em_train.segment.predict"
SIZE_NM = (8.0, 8.0, 8.0)
SETTINGS = {
    "model": {"unet": {"channels": [4, 8, 8]}},
    "run": {"steps": 30, "device": "cpu", "precision": "fp32"},
}
# The recipe's own plan, with a line in a file for every block that is begun.
LOGGED = """
import os
from dataclasses import replace
from em_train.segment import predict

def plan(**asked):
    found = predict.plan(**asked)
    def compute(box):
        with open(os.environ["BLOCK_LOG"], "a") as file:  # one write: lines stay whole
            file.write(".".join(map(str, box.origin_vx)) + f" {os.getpid()}\\n")
        return found.compute(box)
    return replace(found, compute=compute)
"""
DONE_S = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=20, help="kills of workers, of each crew")
    parser.add_argument("--jobs", type=int, default=5, help="kills of the job, of each crew")
    parser.add_argument("--alone", type=int, default=50, help="kills of one process")
    parser.add_argument("--quick", action="store_true", help="a small volume, a few kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="PATH")
    options = parser.parse_args()
    shape = (512, 512, 512)
    if options.quick:
        options.workers, options.jobs, options.alone, shape = 2, 1, 2, (64, 320, 320)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), random.Random(options.seed), shape)
        rows: list[dict[str, Any]] = []
        for part in (
            lambda: measure_bytes(arena),
            lambda: [measure_seams(arena)],
            lambda: measure_memory(arena),
            lambda: [kill(arena, {"processes": 2}, options.workers, options.jobs)],
            lambda: [kill_alone(arena, options.alone)],
            lambda: [lose_block(arena)],
            lambda: [kill(arena, {"dask": "local:2"}, options.workers, options.jobs)],
        ):
            rows += part()
            if options.json:  # after every part: all of them take a while
                conditions = {
                    "shape": shape,
                    "seed": options.seed,
                    "settings": SETTINGS,
                    "minutes": round((time.monotonic() - began) / 60, 1),
                }
                write(options.json, conditions, rows)
    show(rows)
    sys.exit(any(not row["held"] for row in rows))


class Arena:
    """A run, a volume, and a place where it is predicted."""

    def __init__(self, folder: Path, rng: random.Random, shape: tuple[int, int, int]) -> None:
        self.folder, self.rng, self.shape = folder, rng, shape
        self.volume, self.run = folder / "raw.zarr", folder / "run"
        self.reference, self.block_s = "", 1.0
        (folder / "logged.py").write_text(LOGGED)
        piece = render(
            SyntheticConfig(shape_vx=(128, 128, 128), voxel_size_nm=SIZE_NM), (0, 0, 0), (128,) * 3
        )
        whole = np.pad(piece.raw, [(0, n - 128) if n > 128 else (0, 0) for n in shape], "symmetric")
        with new_store(self.volume) as store:
            store.add_image(shape, np.uint8, SIZE_NM).write(
                Box((0, 0, 0), shape), whole[: shape[0], : shape[1], : shape[2]]
            )
        with new_store(folder / "labelled.zarr") as store:
            all_of = Box((0, 0, 0), (128, 128, 128))
            store.add_image((128,) * 3, np.uint8, SIZE_NM).write(all_of, piece.raw)
            label = store.add_image((128,) * 3, np.uint8, SIZE_NM, label="membrane")
            label.write(all_of, (piece.classes == 1).astype(np.uint8))
        data = {"volumes": [str(folder / "labelled.zarr")], "labels": ["membrane"], "patch_vx": 64}
        config = resolve(segment.Config, [Layer("bench", {"data": data, **SETTINGS})])
        assert segment.run(config, new_run(self.run, config, "segment"))

    def start(self, name: str, **asked: Any) -> subprocess.Popen[str]:
        """Begin a prediction, or go on with it, in a process of its own."""
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
        environment = {"PYTHONPATH": path, "BLOCK_LOG": str(self.log(name))}
        command = [sys.executable, __file__, "drive", str(self.run), str(self.volume)]
        return subprocess.Popen(
            [*command, str(self.folder / name), json.dumps(asked)],
            env=os.environ | environment,
            stderr=(self.folder / f"{name}.err").open("a"),
            text=True,
        )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def begun(self, name: str) -> list[tuple[str, int]]:
        """Blocks in the order in which they were begun, and by which process."""
        if not self.log(name).exists():
            return []
        lines = (line.split() for line in self.log(name).read_text().splitlines())
        return [(block, int(process)) for block, process in lines]

    def finished(self, name: str) -> set[str]:
        """The blocks that have their marker, by their first voxels."""
        folder = self.folder / f".{name}.unfinished"
        try:
            block_vx = json.loads((folder / "plan.json").read_text())["plan"]["block_vx"]
            names = [path.name for path in (folder / "markers" / "0").glob("[0-9]*")]
        except FileNotFoundError:  # not begun, or whole
            return set()
        return {
            ".".join(str(int(i) * b) for i, b in zip(name.split("."), block_vx, strict=True))
            for name in names
        }


def drive(run: str, volume: str, out: str, asked: str) -> int:
    """What `emtrain predict --resume` does, with a log of blocks."""
    done = predict.predict(
        *("logged", Path(run), volume, Path(out)),
        outputs=["probabilities"],
        resume=True,
        **json.loads(asked),
    )
    return 0 if done else 75


def digest(path: Path) -> str:
    """Of every voxel file; the plan, and so `zarr.json`, names the block."""
    found = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file() and f != path / "zarr.json"):
        found.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return found.hexdigest()[:16]


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.01)
    return False


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def measure_bytes(arena: Arena) -> list[dict[str, Any]]:
    """The prediction in several ways: seconds of each, and whether it is the same."""
    rows = []
    half = tuple(max(32, n // 2) for n in arena.shape)
    ways: dict[str, dict[str, Any]] = {
        "one process": {},
        "two processes, blocks that cut tiles": {"block_vx": (half[0], 128, 256), "processes": 2},
        "two Dask workers, large blocks": {"block_vx": (64, 512, 512), "dask": "local:2"},
    }
    for number, (case, asked) in enumerate(ways.items()):
        name, began = f"way-{number}.zarr", time.monotonic()
        code = arena.start(name, **asked).wait(DONE_S)
        took = time.monotonic() - began
        assert code == 0, (arena.folder / f"{name}.err").read_text()[-2000:]
        found = digest(arena.folder / name)
        blocks = len(arena.begun(name))
        if not arena.reference:
            arena.reference, arena.block_s = found, took / blocks
        rows.append(
            {
                "case": f"{case}, {blocks} blocks",
                "unit": "s",
                "ours": round(took, 1),
                "million voxels/s": round(np.prod(arena.shape) / took / 1e6, 2),
                "hash": found,
                "limit": "the same hash",
                "held": found == arena.reference,
            }
        )
    return rows


def kill(arena: Arena, crew: dict[str, Any], workers: int, jobs: int) -> dict[str, Any]:
    """Kill workers and jobs until it was often enough, then let the last job finish."""
    name = f"killed-{next(iter(crew))}.zarr"
    killed, again, orphans, known, seen = 0, 0, 0, set[str](), 0

    def look() -> None:
        """Count blocks that were begun although they had been finished before."""
        nonlocal again, seen, known
        finished = arena.finished(name)  # first, so that the lines of these blocks are there
        begun = arena.begun(name)
        again += sum(block in known for block, _ in begun[seen:])
        seen, known = len(begun), known | finished

    for job_number in range(jobs):
        job = arena.start(name, **crew)
        wanted = workers * (job_number + 1) // jobs
        while killed < wanted:
            before = len(arena.begun(name))
            moved = wait_until(lambda: len(arena.begun(name)) > before, 120)  # noqa: B023
            assert moved and job.poll() is None, (arena.folder / f"{name}.err").read_text()[-3000:]
            victim = arena.begun(name)[-1][1]
            time.sleep(arena.rng.random() * 1.2 * arena.block_s)
            if alive(victim):
                os.kill(victim, signal.SIGKILL)
                killed += 1
            look()
        before = len(arena.begun(name))
        wait_until(lambda: len(arena.begun(name)) > before, 120)  # noqa: B023
        time.sleep(arena.rng.random() * 1.2 * arena.block_s)
        job.kill()
        job.wait()
        left = {process for _, process in arena.begun(name)}
        if not wait_until(lambda: not any(map(alive, left)), 30):  # noqa: B023
            orphans += sum(map(alive, left))
        look()
    unfinished = not (arena.folder / name).exists()
    code = arena.start(name, **crew).wait(DONE_S)
    look()
    found = digest(arena.folder / name) if code == 0 else "none"
    same = found == arena.reference
    return {
        "case": f"kill -9 of workers and of the job, {crew}",
        "unit": "kills of workers",
        "ours": killed,
        "kills of the job": jobs,
        "hash": found,
        "blocks begun": seen,
        "finished blocks done again": again,
        "left behind": orphans,
        "exit code": code,
        "limit": workers,
        "held": same and unfinished and killed >= workers and not (again or orphans or code),
    }


def kill_alone(arena: Arena, kills: int) -> dict[str, Any]:
    """Kill the only process so often, anew from the start whenever all is done, then let it finish."""
    killed = finished = different = 0
    while killed < kills or not finished:
        name, errors = f"alone-{finished}.zarr", arena.folder / f"alone-{finished}.zarr.err"
        before = len(arena.begun(name))
        job = arena.start(name)
        if killed < kills:
            ready = lambda: len(arena.begun(name)) > before or job.poll() is not None  # noqa: E731, B023
            assert wait_until(ready, 120), errors.read_text()[-3000:]
            time.sleep(arena.rng.random() * arena.block_s)
            if job.poll() is None:
                job.kill()
                killed += 1
        code = job.wait(DONE_S)
        assert code in (0, -signal.SIGKILL), errors.read_text()[-3000:]
        if code == 0:
            finished += 1
            different += digest(arena.folder / name) != arena.reference
    return {
        "case": "kill -9 of the only process",
        "unit": "kills",
        "ours": killed,
        "finished stores": finished,
        "of them not the same": different,
        "limit": kills,
        "held": finished > 0 and not different,
    }


def lose_block(arena: Arena) -> dict[str, Any]:
    """Take a marker away while the command goes on."""
    out = arena.folder / "lost.zarr"
    command = [sys.executable, "-m", "em_train.cli", "predict", str(arena.run)]
    command += ["--data", str(arena.volume), "--out", str(out), "--processes", "2"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    markers = arena.folder / ".lost.zarr.unfinished" / "markers" / "0"
    there = lambda: sorted(markers.glob("[0-9]*"))  # noqa: E731
    assert wait_until(lambda: bool(there()), 120)
    there()[0].unlink()
    _, errors = job.communicate(timeout=DONE_S)
    return {
        "case": "a block goes missing",
        "unit": "exit code",
        "ours": job.returncode,
        "store": out.exists(),
        "says": errors.strip().splitlines()[-1][-90:],
        "limit": 1,
        "held": job.returncode == 1 and not out.exists() and "is missing" in errors,
    }


def measure_seams(arena: Arena) -> dict[str, Any]:
    """The error of stored bytes against the network on whole slices, by the place in them."""
    volume = open_volume(arena.volume)
    written = open_volume(arena.folder / "way-0.zarr", channel=0)
    network = em_models.load(arena.run / "weights" / "network").eval()
    halo, grey = network.config.halo, grey_range(volume)
    plan = predict._plan(MODULE, **asked(arena))
    steps = {plan.grid.step_vx[1], plan.grid.step_vx[2], 128}
    errors: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for z in range(0, arena.shape[0], max(1, arena.shape[0] // 8)):
        image = torch.from_numpy(grey.unit(volume[z : z + 1, :, :]))[None]
        sides = [n + -n % network.config.stride - n for n in arena.shape[1:]]
        padding = [halo, halo + sides[1], halo, halo + sides[0]]
        with torch.inference_mode():
            wide = torch.nn.functional.pad(image, padding, mode="reflect")
            want = network(wide)[0, 0, halo:, halo:].sigmoid()[: arena.shape[1], : arena.shape[2]]
        error = np.abs(written[z : z + 1, :, :][0] - 255.0 * want.double().numpy())
        border = np.zeros(error.shape, bool)
        for step in steps:
            for edge in range(step, max(error.shape), step):
                border[edge - 1 : edge + 1] = border[:, edge - 1 : edge + 1] = True
        for at_border in (True, False):
            errors[at_border].append(error[border == at_border])
    there, inside = (np.concatenate(errors[at_border]) for at_border in (True, False))
    return {
        "case": "error at borders of tiles and blocks, of 255",
        "unit": "mean",
        "ours": round(float(there.mean()), 5),
        "inside": round(float(inside.mean()), 5),
        "largest at borders": round(float(there.max()), 4),
        "largest inside": round(float(inside.max()), 4),
        "limit": 0.51,  # rounding to bytes
        "held": bool(there.max() <= 0.51 and inside.max() <= 0.51),
    }


def asked(arena: Arena) -> dict[str, Any]:
    """What `plan` is asked."""
    address = {"run": str(arena.run), "address": str(arena.volume)}
    return {**address, "outputs": ["probabilities"], "tta": False}


def measure_memory(arena: Arena) -> list[dict[str, Any]]:
    """What a fresh process takes for a few blocks beyond the loaded network."""
    rows = []
    for block in ((32, 256, 256), (64, 512, 512)):
        command = [sys.executable, __file__, "measure", str(arena.folder), json.dumps(asked(arena))]
        done = subprocess.run(
            [*command, json.dumps(block)], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            {
                "case": f"memory for blocks of {block}",
                "unit": "MiB",
                "ours": found["took"],
                "network and tile": found["network"],
                "limit": found["stated"],
                "held": found["took"] <= found["stated"],
            }
        )
    return rows


def measure(folder: str, wanted: str, block: str) -> int:
    """In a fresh process: the highest memory of writing blocks, above that of a first tile."""
    block_vx = tuple(json.loads(block))
    torch.set_num_threads(1)
    empty = memory("VmRSS")
    plan = predict._plan(MODULE, **json.loads(wanted))
    plan.compute(Box((0, 0, 0), plan.grid.tile_vx))
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here the highest is counted anew
    out = Path(folder) / f"measured-{block_vx[1]}.zarr"
    store = begin_blocks(out, plan.images, block_vx=block_vx, config={})  # type: ignore[arg-type]
    assert store is not None
    with store:
        for key in store.pending(0)[:3]:
            store.write(key, plan.compute(store.box(key)))
    stated = block_figures(
        plan.images[0].shape_vx,
        plan.grid,
        block_vx,  # type: ignore[arg-type]
        channels=plan.channels,
        raw_itemsize=plan.raw_itemsize,
        stored_bytes=len(plan.images[0].channels),
    ).peak_bytes
    figures = {"took": memory("VmHWM") - base, "network": base - empty, "stated": stated >> 20}
    print(json.dumps(figures))
    return 0


def memory(what: str) -> int:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) >> 10


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        sys.exit(drive(*sys.argv[2:]))
    if sys.argv[1:2] == ["measure"]:
        sys.exit(measure(*sys.argv[2:]))
    main()

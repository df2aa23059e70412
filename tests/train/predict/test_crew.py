"""Blocks dealt out to processes that are killed: same bytes, and nothing finished is done again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from em_data import open_volume
from em_data.writer.blockwise import begin_blocks
from em_data.writer.store import ImageConfig
from em_train.engine.errors import BlockFailedError
from em_train.predict.block_job import BlockJob, BlockWriter
from em_train.predict.crew import write_blocks
from em_train.predict.dask_workers import DaskCrew

pytestmark = pytest.mark.processes

SHAPE = (16, 96, 96)
TOY = """
    import os, time
    import numpy as np
    from em_data import open_volume
    from em_data.writer.tiling import TileGrid, as_uint8, predict_block

    def make(*, volume, log, seconds, fail=None):
        raw = open_volume(volume)
        grid = TileGrid(tile_vx=(2, 24, 24), halo_vx=(1, 0, 0), overlap_vx=(0, 8, 8), batch=2)

        def model(tiles):  # wrong at its borders, so that blending matters
            ramp = np.linspace(0.5, 1, tiles.shape[-1], dtype=np.float32)
            values = tiles[:, 1:-1].astype(np.float32) / 255 * ramp
            return np.stack([values, 1 - values], 1)

        def compute(box):
            place = ".".join(map(str, box.origin_vx))
            with open(log, "a") as file:  # one write, so that lines of several processes stay whole
                file.write(f"{place} {os.getpid()}\\n")
            if fail == "die":
                os.kill(os.getpid(), 9)
            if fail == "error":
                raise ValueError("this block is no good")
            time.sleep(seconds)
            probabilities = predict_block(raw, model, grid, box)
            return {"": as_uint8(probabilities), "labels/classes": probabilities.argmax(0).astype(np.uint8)}

        return compute
"""
RUN = """
    import json, sys
    from em_data import ImageConfig, begin_blocks
    from em_train.predict.block_job import BlockJob
    from em_train.predict.crew import write_blocks

    def main():
        settings = json.loads(sys.argv[1])
        frame = dict(
            shape_vx=tuple(settings["shape"]), voxel_size_nm=(30, 8, 8), chunk_vx=(4, 16, 16)
        )
        images = [
            ImageConfig(dtype="uint8", channels=("a", "b"), **frame),
            ImageConfig(dtype="uint8", label="classes", classes=("a", "b"), pool="mode", **frame),
        ]
        block = tuple(settings["block"])
        store = begin_blocks(settings["out"], images, block_vx=block, config={}, resume=True)
        if store is None:
            return 0
        job = BlockJob(
            store=settings["out"], make="toy_blocks:make", arguments=settings["arguments"]
        )
        crew = {"processes": settings["processes"], "dask": settings["dask"]}
        return 0 if write_blocks(job, store, what="toy", **crew) else 75

    if __name__ == "__main__":  # Dask's workers import this file
        sys.exit(main())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that begins or goes on with a job in a process of its own."""
    (tmp_path / "toy_blocks.py").write_text(textwrap.dedent(TOY))
    (tmp_path / "run_toy.py").write_text(textwrap.dedent(RUN))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    np.save(tmp_path / "raw.npy", np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8))

    def start(name="out.zarr", processes=0, block=(4, 32, 32), seconds=0.0, fail=None, dask=None):
        arguments = {
            "volume": str(tmp_path / "raw.npy"),
            "log": str(tmp_path / f"{name}.log"),
            "seconds": seconds,
            "fail": fail,
        }
        settings = {
            **{"out": str(tmp_path / name), "processes": processes, "block": block},
            **{"arguments": arguments, "shape": SHAPE, "dask": dask},
        }
        command = [sys.executable, str(tmp_path / "run_toy.py"), json.dumps(settings)]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return jobs[-1]

    jobs = []
    yield start
    for job in jobs:  # those of a test that failed
        job.kill()
        job.wait()
        job.stderr.close()


def digest(path):
    """Of every voxel file of a store; the plan and so `zarr.json` name the block size."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f != path / "zarr.json")
    assert len(files) > 100
    content = b"".join(str(f.relative_to(path)).encode() + f.read_bytes() for f in files)
    return hashlib.sha256(content).hexdigest()


def finish(process):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


def computed(path):
    """(block, process) in the order in which they were begun."""
    return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []


def markers(path):
    folder = path.with_name(f".{path.name}.unfinished") / "markers" / "0"
    return {m.name for m in folder.glob("[0-9]*")} if folder.is_dir() else set()


def workers_of(process):
    """The processes that `process` has started, where the system says."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def gone(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # its new parent has not looked yet


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def origin(marker, block=(4, 32, 32)):
    return ".".join(str(int(i) * b) for i, b in zip(marker.split("."), block, strict=True))


def test_bytes_do_not_depend_on_blocks_or_processes(tmp_path, run):
    finish(run("a.zarr"))
    finish(run("b.zarr", processes=2))
    finish(run("c.zarr", processes=1, block=(8, 96, 48)))
    assert digest(tmp_path / "a.zarr") == digest(tmp_path / "b.zarr") == digest(tmp_path / "c.zarr")
    volume = open_volume(tmp_path / "a.zarr", channel="a")
    assert volume.shape == SHAPE and len(volume.levels) == 2
    assert len({process for _, process in computed(tmp_path / "b.zarr.log")}) == 2
    assert finish(run("a.zarr")) == ""  # whole already: nothing is computed
    assert len(computed(tmp_path / "a.zarr.log")) == 36


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
@pytest.mark.parametrize(
    ("jobs", "each", "block"),
    [(1, 2, (4, 32, 32)), pytest.param(5, 4, (4, 16, 16), marks=pytest.mark.slow)],
)
def test_kills_of_workers_and_of_the_job_change_nothing(tmp_path, run, jobs, each, block):
    finish(run("whole.zarr"))
    blocks = SHAPE[0] * SHAPE[1] * SHAPE[2] // (block[0] * block[1] * block[2])
    out, log = tmp_path / "out.zarr", tmp_path / "out.zarr.log"
    kills, begun, finished = 0, 0, set()

    def progress():
        before = len(markers(out))
        wait_for(lambda: len(markers(out)) > before)

    for _ in range(jobs):
        job = run(processes=2, seconds=0.1, block=block)
        for _ in range(each):  # workers, each after some progress
            progress()
            os.kill(workers_of(job)[-1], signal.SIGKILL)
            kills += 1
        progress()
        workers = workers_of(job)
        job.kill()
        job.communicate()
        assert workers
        for pid in workers:  # no orphans
            wait_for(partial(gone, pid), 10)
        # What has a marker now must not be computed again.
        before, finished = finished, {origin(m, block) for m in markers(out)}
        again = {place for place, _ in computed(log)[begun:]}
        assert not again & before and before < finished
        assert len(finished) < blocks and not out.exists()
        begun = len(computed(log))
    errors = finish(run(processes=2, block=block))
    again = {place for place, _ in computed(log)[begun:]}
    assert not again & finished and len(again | finished) == blocks
    assert len(computed(log)) > blocks  # some were lost indeed
    assert digest(out) == digest(tmp_path / "whole.zarr")
    assert kills == jobs * each and "Traceback" not in errors


@pytest.mark.parametrize("processes", [0, 2])
def test_a_signal_ends_it_in_order(tmp_path, run, processes):
    job = run(processes=processes, seconds=0.1)
    wait_for(lambda: len(markers(tmp_path / "out.zarr")) > 2)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 75, errors
    # Blocks that were under way have been finished.
    begun = Counter(block for block, _ in computed(tmp_path / "out.zarr.log"))
    assert set(begun) == {origin(m) for m in markers(tmp_path / "out.zarr")}
    finish(run(processes=processes))
    begun = Counter(block for block, _ in computed(tmp_path / "out.zarr.log"))
    assert len(begun) == 36 and set(begun.values()) == {1}


@pytest.mark.parametrize("processes", [0, 1])
def test_a_block_that_cannot_be_computed_is_an_error(run, processes):
    job = run(processes=processes, fail="error")
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1 and "this block is no good" in errors


@pytest.mark.parametrize(
    ("block", "deaths", "same"),
    [((16, 96, 96), 5, 5), pytest.param((4, 32, 32), 10, 1, marks=pytest.mark.slow)],
)
def test_a_block_that_takes_its_workers_down_is_given_up(tmp_path, run, block, deaths, same):
    job = run(processes=1, fail="die", block=block)
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 1 and "status -9" in errors
    assert f"{deaths} workers in a row have ended" in errors and f"{same} of them at" in errors
    # In turn: what takes workers down does not keep the others waiting.
    blocks = Counter(block for block, _ in computed(tmp_path / "out.zarr.log"))
    assert set(blocks.values()) == {same} and sum(blocks.values()) == deaths


def test_what_a_worker_finished_before_it_died_is_not_done_again(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    image = ImageConfig(
        shape_vx=(4, 32, 64), dtype="uint8", voxel_size_nm=None, chunk_vx=(4, 16, 16)
    )
    with begin_blocks(tmp_path / "a.zarr", [image], block_vx=(4, 32, 32), config={}) as store:
        first, second = store.pending(0)
        store.write(first, {"": np.full((4, 32, 32), 7, np.uint8)})
        arguments = {"volume": str(tmp_path / "raw.npy"), "seconds": 0, "fail": "error"}
        arguments["log"] = str(tmp_path / "log")
        job = BlockJob(store=str(tmp_path / "a.zarr"), make="toy_blocks:make", arguments=arguments)
        writer = BlockWriter(job)
        writer.write(first)
        with pytest.raises(ValueError, match="no good"):
            writer.write(second)


def test_a_worker_that_cannot_begin_is_an_error(tmp_path):
    image = ImageConfig(shape_vx=(4, 4, 4), dtype="uint8", voxel_size_nm=None)
    out = tmp_path / "a.zarr"
    with begin_blocks(out, [image], block_vx=(4, 4, 4), config={}) as store:
        job = BlockJob(store=str(out), make="no_such_module:make")
        with pytest.raises(BlockFailedError, match="no_such_module"):
            write_blocks(job, store, processes=1, what="toy")
        with pytest.raises(ImportError, match="no_such_module"):
            write_blocks(job, store, what="toy")


@pytest.mark.slow
def test_dask_writes_the_same_bytes_through_kills(tmp_path, run):
    pytest.importorskip("distributed")
    finish(run("whole.zarr", processes=1))
    out, log = tmp_path / "out.zarr", tmp_path / "out.zarr.log"
    job = run(dask="local:2", seconds=0.1)
    for _ in range(2):  # workers that have just begun a block
        before = len(computed(log))
        wait_for(lambda before=before: len(computed(log)) > before)
        os.kill(int(computed(log)[-1][1]), signal.SIGKILL)
    before = len(markers(out))
    wait_for(lambda: len(markers(out)) > before + 2)
    processes = {int(process) for _, process in computed(log)}
    job.kill()
    job.wait()
    for pid in processes:  # no orphans
        wait_for(partial(gone, pid), 30)
    finished, begun = {origin(m) for m in markers(out)}, len(computed(log))
    assert 0 < len(finished) < 36 and len(processes) > 2
    finish(run(dask="local:2"))
    again = {block for block, _ in computed(log)[begun:]}
    assert not again & finished and len(again | finished) == 36
    assert digest(out) == digest(tmp_path / "whole.zarr")


def test_dask_stops_in_order_and_names_what_went_wrong(tmp_path, run):
    pytest.importorskip("distributed")
    job = run("failed.zarr", dask="local:1", fail="error")
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 1 and "this block is no good" in errors
    job = run(dask="local:2", seconds=0.2)
    wait_for(lambda: len(markers(tmp_path / "out.zarr")) > 2)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 75, errors
    begun = {block for block, _ in computed(tmp_path / "out.zarr.log")}
    assert begun == {origin(m) for m in markers(tmp_path / "out.zarr")} and len(begun) < 36
    with pytest.raises(ValueError, match=r"wanted local:N with N ≥ 1, or tcp"):
        DaskCrew(BlockJob(store="", make=""), "local:none")

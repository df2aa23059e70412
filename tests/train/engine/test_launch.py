"""Several processes of one run, under torch elastic, as a person starts and stops them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from em_train.engine import checkpoint
from em_train.engine.launch import Workers

pytestmark = pytest.mark.processes

RUN = ["--config", str(Path(__file__).with_name("small.toml"))]
# Imported by every Python that finds it in PYTHONPATH: makes one worker of several fail.
SABOTAGE = """
import os, sys
if os.environ.get("RANK") == "1":
    {what}
"""


def start(run, *more, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "em_train.cli", "dense-ssl", "--out", str(run), *RUN, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200"} | environment,
    )


def refused(run, *more, **environment):
    process = start(run, *more, **environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    return errors


def workers_of(launcher):
    """The processes that a launcher has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == launcher and rest.split()[0] != "Z" and "python" in name:
            found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_where_processes_are_wanted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Workers().count() is None and Workers().device() is None
    assert Workers(gpus="auto").count() == 2 and Workers(gpus="auto").device() == "cuda"
    assert Workers(gpus="1").count() == 1 and Workers(gpus="1").device() == "cuda"
    assert Workers(gpus="0").count() is None and Workers(gpus="0").device() == "cpu"
    assert Workers(gpus="0", processes=3).count() == 3
    assert Workers(processes=1).count() == 1 and Workers(processes=1).device() == "cpu"
    with pytest.raises(ValueError, match="--gpus 3, but this machine has 2"):
        Workers(gpus="3").count()
    with pytest.raises(ValueError, match="choose one of them"):
        Workers(gpus="2", processes=2)
    for wrong in ({"gpus": "two"}, {"gpus": "-1"}, {"processes": 0}):
        with pytest.raises(ValueError, match="wanted"):
            Workers(**wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert Workers(gpus="auto").count() is None and Workers(gpus="auto").device() is None
    assert Workers(gpus="4").device() == "cuda"  # of the nodes of a Slurm job


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_worker_comes_back_and_a_signal_saves(tmp_path):
    run = tmp_path / "run"
    newest = lambda: checkpoint.newest(run / "checkpoints")  # noqa: E731
    process = start(run, "--processes", "2", "--set", "run.steps=100000")
    try:
        wait_for(lambda: newest() >= 2)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        wait_for(lambda: not set(workers) & set(workers_of(process.pid)))
        reached = newest()
        wait_for(lambda: newest() > reached)
        assert (run / "log.txt").read_text().count("resumed at step") == 1
        workers = workers_of(process.pid)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 75 and time.monotonic() - asked < 20, errors
    assert errors.count("starting again from step") == 1 and "restart 1 of 3" in errors
    assert "rank 1: Signal 9" in errors or "rank 0: Signal 9" in errors
    assert "--resume --processes 2" in errors and not output and "Traceback" not in errors
    assert not set(workers) & {int(p.name) for p in Path("/proc").glob("[0-9]*")}
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert checkpoint.load(run / "checkpoints")["step"] == steps[-1]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    errors = refused(run, "--resume", "--set", "run.steps=100000")
    assert "was written by 2 processes, now there are 1" in errors and "--processes 2" in errors
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait(tmp_path):
    run = tmp_path / "run"
    process = start(run, "--processes", "2", "--set", "run.steps=100000")
    wait_for(lambda: checkpoint.newest(run / "checkpoints") >= 2)
    workers = workers_of(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # too busy to save
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == 130
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected", "traceback"),
    [
        ("sys.modules['zarr'] = None", "error: rank 1: ", False),
        (
            "import torch; torch.manual_seed = lambda seed: 1 / 0",
            "ZeroDivisionError",
            True,
        ),
    ],
    ids=["cannot import", "bug"],
)
def test_why_a_worker_fails_is_said_once_with_its_rank(tmp_path, what, expected, traceback):
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE.format(what=what))
    run = tmp_path / "run"
    errors = refused(run, "--processes", "2", PYTHONPATH=str(tmp_path))
    assert errors.count(expected) == 1 or (traceback and errors.count(expected) >= 1), errors
    assert traceback or "zarr" in errors.splitlines()[-1], errors
    assert "rank 1" in errors and errors.count("Traceback") == (1 if traceback else 0), errors
    if not traceback:
        assert not run.exists(), "a worker that cannot begin leaves nothing behind"

"""The sbatch script, with a stand-in for Slurm that starts the same processes."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from em_train.engine import checkpoint
from em_train.engine.slurm import script

pytestmark = pytest.mark.processes

RUN = ["--config", str(Path(__file__).with_name("small.toml"))]
# Runs what it is given, as srun does for each node; signals go on to it.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" & child=$!
trap 'kill -USR1 $child' USR1
trap 'kill -TERM $child' TERM
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
echo "$@" >> {log}
[ "$1" = show ] && echo localhost
exit 0
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with srun and scontrol, in a job of one node; returns the log of scontrol."""
    log, tools = tmp_path / "scontrol.log", tmp_path / "tools"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL.format(log=log))):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost"}
    for key, value in (job | {"SLURM_JOB_NUM_NODES": "1"}).items():
        monkeypatch.setenv(key, value)
    return log


def bash(text, *options):
    return subprocess.run(
        ["bash", *options], input=text, text=True, capture_output=True, check=False
    )


def test_the_script_is_bash_and_says_what_slurm_needs(tmp_path):
    path = tmp_path / "odd 'name'" / "run"
    arguments = ["dense-ssl", "--data", "a b.zarr", "--gpus", "4"]
    text = script(arguments, path, gpus=4, processes=4, options=["--nodes=2", "--time=24:00:00"])
    assert bash(text, "-n").returncode == 0
    head = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    for option in ("--gpus-per-node=4", "--nodes=2", "--time=24:00:00", "--requeue"):
        assert f"#SBATCH {option}" in head
    assert any("--signal=B:USR1@" in line for line in head)
    assert text.index("#SBATCH --time") < text.index("\nexport"), (
        "sbatch stops at the first command"
    )
    line = next(line for line in text.splitlines() if "em_train.cli" in line)
    given = shlex.split(line.partition("em_train.cli")[2].partition('"${again')[0])
    assert given == [*arguments, "--out", str(path)]
    assert "--cpus-per-task=3" in script([], path, gpus=None, processes=3)


def test_the_command_prints_it_without_running(tmp_path):
    command = [sys.executable, "-m", "em_train.cli", "dense-ssl", "--out", "run", *RUN]
    more = ["--processes", "2", "--slurm", "print", "--sbatch=--nodes=2"]
    result = subprocess.run(
        [*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert bash(result.stdout, "-n").returncode == 0
    assert "#SBATCH --nodes=2" in result.stdout and "--nproc-per-node=2" in result.stdout
    assert "--slurm" not in result.stdout.replace("emtrain --slurm", "")
    assert "--sbatch" not in result.stdout and f"--out {tmp_path / 'run'}" in result.stdout
    assert not list(tmp_path.iterdir())


def test_the_folder_of_the_log_is_there_when_it_is_submitted(tmp_path, monkeypatch):
    """Slurm ends a job at once whose output cannot be opened."""
    (tmp_path / "sbatch").write_text(
        "#!/bin/bash\n"
        "log=$(sed -n 's/^#SBATCH --output=//p')\n"
        '[ -d "$(dirname "$log")" ] && echo "Submitted $log"\n'
    )
    (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    run = tmp_path / "new" / "folder" / "run"
    command = [sys.executable, "-m", "em_train.cli", "dense-ssl", "--out", str(run), *RUN]
    result = subprocess.run(
        [*command, "--processes", "2", "--slurm", "submit"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"Submitted {run}.slurm.txt" in result.stdout and not run.exists()


@pytest.mark.slow
def test_a_preempted_job_saves_is_queued_again_and_goes_on(slurm, tmp_path):
    run = tmp_path / "run"

    def job(steps):
        sets = ["--set", f"run.steps={steps}", "--processes", "2", "--set", "run.device=cpu"]
        return script(["dense-ssl", *RUN, *sets], run, gpus=None, processes=2)

    process = subprocess.Popen(["bash", "-c", job(300)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while checkpoint.newest(run / "checkpoints") < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)  # what --signal=B:USR1 sends to the batch shell
    asked = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert time.monotonic() - asked < 40
    assert f"requeue {os.getpid()}" in slurm.read_text()
    log = (run / "log.txt").read_text()
    assert "SIGUSR1: saved at step" in log
    reached = checkpoint.load(run / "checkpoints")["step"]
    assert 3 <= reached < 300

    process = subprocess.Popen(["bash", "-c", job(300)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while checkpoint.newest(run / "checkpoints") <= reached:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # cancelled by a person: not queued again
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert slurm.read_text().count("requeue") == 1
    assert f"resumed at step {reached}" in (run / "log.txt").read_text()

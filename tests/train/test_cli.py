"""The command as a person meets it: in a process of its own."""

import json
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from em_data import open_volume
from em_data.formats.legend import read_legend
from em_data.synthetic import CLASSES
from em_train import catalogue
from em_train.cli import app
from em_train.commands import options
from typer.testing import CliRunner

RUN = [
    *("--set", "run.steps=4", "--set", "data.batch_size=1", "--set", "data.stack.size_vx=65"),
    *("--set", "model.encoder.pools=[]"),
    *("--set", "run.device=cpu", "--set", "model.predictor_width=8", "--set", "run.log_every=1"),
]
DATA = ["--data", "synthetic:shape=6x96x96"]


# What a fresh process does, but that torch, which it takes seconds to import, is there already.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["em_train.cli", "torch", "em_data", "em_models", "em_losses"])
MAIN = """
import os, sys
for descriptor, path in enumerate(told, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
os.chdir(cwd)
os.environ |= {"COLUMNS": "200", "NO_COLOR": "1"}
sys.argv = ["emtrain", *arguments]
from em_train.cli import main
main()
"""


def emtrain(*arguments, cwd=None):
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, name) for name in ("stdout", "stderr")]
        given = {"arguments": [*map(str, arguments)], "cwd": cwd or Path.cwd(), "told": told}
        process = FORKS.Process(target=exec, args=(MAIN, given))
        process.start()
        process.join()
        stdout, stderr = (path.read_text() for path in told)
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def refused(result, *expected):
    """An error for people: one message, exit code 1, no traceback."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in ("error: ", *expected):
        assert part in result.stderr


@pytest.mark.processes
def test_help_imports_no_torch_and_is_fast():
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "em_train.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - began < 5  # 0.2 s on an idle machine; the limit is for busy ones
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "zarr", "pydantic"}
    assert "dense-ssl" in result.stdout
    for command in ("dense-ssl", "synth", "info"):
        shown = emtrain(command, "--help")
        assert shown.returncode == 0 and "--debug" in shown.stdout


def test_usage_errors_have_their_own_code():
    assert emtrain("dense-ssl", "--lr", "1").returncode == 2
    assert emtrain("no-such-command").returncode == 2


def test_unknown_key_names_the_right_one_and_writes_nothing(tmp_path):
    result = emtrain("dense-ssl", "--set", "optim.lrr=1", "--out", tmp_path / "run")
    refused(result, "optim.lrr", "did you mean optim.lr?")
    assert not (tmp_path / "run").exists()


def test_show_config_lists_every_key_and_does_not_run(tmp_path):
    result = emtrain("dense-ssl", "--show-config", "--set", "optim.lr=0.5", cwd=tmp_path)
    assert result.returncode == 0
    assert "optim.lr" in result.stdout and "0.5 (default 0.002)" in result.stdout
    assert "Learning rate of AdamW" in result.stdout
    odd = emtrain(
        "dense-ssl", "--show-config", "--set", 'data.volumes=["a[/b].zarr"]', cwd=tmp_path
    )
    assert odd.returncode == 0 and "a[/b].zarr" in odd.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("nowhere.zarr", "no volume at nowhere.zarr"),
        ("notes.txt", "no known volume format"),
        ("synthetic:size=3", "is not understood"),
        ("synthetic:shape=2x80x80", "exceeds volume"),
    ],
)
def test_data_that_is_none_is_refused(tmp_path, data, expected):
    (tmp_path / "notes.txt").write_text("no volume")
    result = emtrain("dense-ssl", "--data", data, "--out", "run", *RUN, cwd=tmp_path)
    refused(result, expected)
    assert not (tmp_path / "run").exists()


def test_a_run_its_folder_and_going_on(tmp_path):
    odd = tmp_path / "odd [/x] ü"  # brackets mean nothing in a path
    odd.mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(0, 4095, (6, 96, 96), np.uint16)
    np.save(odd / "raw.npy", voxels)
    run = odd / "run"
    result = emtrain("dense-ssl", "--data", "raw.npy", "--out", run, *RUN, cwd=odd)
    assert result.returncode == 0, result.stderr
    assert f"look at {run / 'report.html'}" in result.stdout
    before = (run / "metrics.jsonl").read_bytes()

    assert "uint16" in result.stderr and "Warning" not in result.stderr
    refused(emtrain("dense-ssl", *DATA, "--out", run, *RUN), "holds another run", "--resume")
    gone = emtrain("dense-ssl", "--out", run, "--resume")  # from another folder
    assert gone.returncode == 0, gone.stderr
    other = emtrain("dense-ssl", "--out", run, "--resume", "--set", "optim.lr=0.5")
    refused(other, "another configuration", "optim.lr: 0.002 ≠ 0.5")
    assert (run / "metrics.jsonl").read_bytes() == before

    described = emtrain("info", run)
    assert "4 of 4" in described.stdout and described.returncode == 0
    weights = emtrain("info", run / "weights" / "encoder")
    assert "DenseEncoder" in weights.stdout
    again = emtrain("dense-ssl", "--config", run / "config.json", "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "b" / "report.html").exists()


def test_a_run_is_proven_evaluated_and_used(tmp_path):
    data = "synthetic:shape=4x140x140"
    made = emtrain("dense-ssl", "--data", data, "--out", "run", *RUN, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    at = {"cwd": tmp_path}
    # Four steps teach nothing, so the proof fails: in words, and as an exit code.
    proof = emtrain("prove", "run", "--audit-steps", "0", "--json", "proof.json", **at)
    assert proof.returncode == 1 and "FAILED" in proof.stdout and "Traceback" not in proof.stderr
    found = json.loads((tmp_path / "proof.json").read_text())
    assert found["passed"] is False and found["figures"]["crop_vx"] == 65
    evaluated = emtrain(
        *("evaluate", "run", "--data", data, "--fit-z", "0:2", "--score-z", "3:4"),
        *("--no-baselines", "--json", "scores.json"),
        **at,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "pooled probe" in evaluated.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["fit_slices"] == [0, 1]
    assert (tmp_path / "run" / "images" / "evaluation.png").exists()
    predicted = emtrain("predict", "run", "--data", data, "--out", "classes.zarr", **at)
    assert predicted.returncode == 0, predicted.stderr
    assert open_volume(tmp_path / "classes.zarr").shape == (4, 140, 140)
    refused(emtrain("evaluate", "nowhere", "--data", data, **at), "no config.json")


def test_commands_for_runs_read_which_recipe_it_was(tmp_path):
    (tmp_path / "config.json").write_text('{"command": "mae"}')
    with pytest.raises(ValueError, match="run of mae; this works for dense-ssl"):
        catalogue.module_for(tmp_path, "evaluate")
    assert (
        options.parse_range("--fit-z", "3:12") == (3, 12)
        and options.parse_range("--fit-z", None) is None
    )
    for wrong in ("3", "3:", "a:b", "-1:4"):
        with pytest.raises(ValueError, match="--fit-z is .* wanted a range FIRST:END"):
            options.parse_range("--fit-z", wrong)


def test_numbers_that_cannot_be_are_refused():
    assert options.parse_layers("--layers", "4,-1") == (4, -1)
    for wrong in ("a", "1,,2", ""):
        with pytest.raises(ValueError, match=r"--layers is .* wanted numbers such as 4,8,-1"):
            options.parse_layers("--layers", wrong)
    assert options.parse_numbers("--position", "0,-1,8", int, positive=False) == [0, -1, 8]
    for wrong in ("0,8,8", "8,-1,8", "8,8"):
        with pytest.raises(ValueError, match=r"--patch is .* wanted three numbers z,y,x above 0"):
            options.parse_numbers("--patch", wrong, int)
    with pytest.raises(ValueError, match="--at-nm is 'nan,8,8'"):
        options.parse_numbers("--at-nm", "nan,8,8", float)
    predict = ("predict", "run", "--data", "raw.zarr", "--out", "out.zarr")
    for arguments in (
        (*predict, "--processes", "-1"),
        (*predict, "--memory-gib", "-1"),
        ("view", "raw.zarr", "--port", "-1"),
        ("prove", "run", "--audit-steps", "-1"),
    ):
        told = CliRunner().invoke(app, arguments)
        assert told.exit_code == 2 and arguments[-2] in told.output, told.output
    told = CliRunner().invoke(app, ("shortcut", "run", "--audit-steps", "0"))
    assert told.exit_code == 2 and "emtrain prove" in told.output


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    refused(emtrain("dense-ssl", *DATA, *RUN, "--out", tmp_path / "file"), "not an empty folder")
    refused(emtrain("dense-ssl", *DATA, *RUN, "--out", tmp_path / "file" / "run"), "is a file, not")
    refused(emtrain("dense-ssl", "--resume"), "--out")
    refused(emtrain("dense-ssl", *DATA, *RUN, "--init="), "--init is empty")
    refused(emtrain("dense-ssl", "--resume", "--out", tmp_path / "none"), "no run to resume")


@pytest.mark.processes
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    arguments = [*DATA, "--out", str(run), *RUN, "--set", "run.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "em_train.cli", "dense-ssl", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = run / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "--resume" in errors and "Traceback" not in errors
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    resumed = emtrain("dense-ssl", "--out", run, "--resume", "--set", f"run.steps={steps[-1] + 2}")
    refused(resumed, "run.steps")  # the schedule depends on it
    assert "saved at step" in (run / "log.txt").read_text()


def test_synth_writes_what_info_describes(tmp_path):
    out = tmp_path / "tissue.zarr"
    made = emtrain("synth", out, "--shape", "8,96,80", "--voxel-nm", "10,10,10", "--seed", "3")
    assert made.returncode == 0, made.stderr
    result = emtrain("info", out, "--json", tmp_path / "info.json")
    assert result.returncode == 0, result.stderr
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["format"] == "OME-Zarr 0.5"
    assert info["shape (z, y, x)"] == "8 × 96 × 80"
    assert info["voxel size (nm)"] == "10 × 10 × 10"
    assert info["labels"] == "classes, instances"
    assert read_legend(str(out / "labels/classes")).classes == dict(enumerate(CLASSES))
    refused(emtrain("synth", out, "--shape", "8,64,64"), "exists already")
    refused(emtrain("synth", tmp_path / "b.zarr", "--shape", "8,64"), "--shape", "three numbers")
    refused(emtrain("synth", tmp_path / "b.zarr", "--set", "noize=1"), "did you mean noise?")
    refused(emtrain("synth", tmp_path / "b.zarr", "--shape", "0,64,64"), "above 0")
    assert not (tmp_path / "b.zarr").exists()


def test_info_of_this_machine_and_of_nothing(tmp_path):
    result = emtrain("info")
    assert result.returncode == 0
    for name in ("python", "torch", "em-data", "losses"):
        assert name in result.stdout
    refused(emtrain("info", tmp_path / "nothing"), "no volume at")
    refused(emtrain("info", tmp_path), "folder")


def test_debug_shows_the_traceback():
    result = emtrain("info", "nowhere", "--debug")
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_reports_and_places_that_cannot_be(tmp_path):
    run = tmp_path / "run"
    refused(
        emtrain("dense-ssl", *DATA, "--out", run, "--gpus", "999"), "--gpus 999, but this machine"
    )
    refused(emtrain("dense-ssl", *DATA, "--out", run, "--gpus", "some"), "wanted a number or auto")
    refused(
        emtrain("dense-ssl", *DATA, "--out", run, "--slurm", "print"), "--gpus N or --processes N"
    )
    refused(
        emtrain("dense-ssl", *DATA, *RUN, "--out", run, "--init", tmp_path),
        "give --init the folder",
    )
    refused(emtrain("bench-train", "no-recipe"), "there are: dense-ssl")
    refused(emtrain("report", tmp_path), "holds no run")
    assert not list(tmp_path.iterdir())

"""tools/gpu as far as a machine without a GPU can tell: what it says, how it ends, its tables."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
import torch


@pytest.fixture(scope="module")
def gpu(repository):
    """The module behind tools/gpu."""
    path = repository / "tools" / "bench" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu"]


def tool(repository, *arguments, **environment):
    return subprocess.run(
        [repository / "tools" / "gpu", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable} | environment,
    )


def test_help_names_what_can_be_set(repository):
    told = tool(repository, "--help")
    assert told.returncode == 0
    assert "--out" in told.stdout and "--minutes" in told.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(repository, tmp_path):
    told = tool(repository, "--out", str(tmp_path / "out"))
    assert told.returncode == 1 and not told.stdout
    assert "sees no GPU here" in told.stderr and told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_python_that_will_not_do_is_named(repository, tmp_path):
    told = tool(repository, PYTHON=str(tmp_path / "none"))
    assert told.returncode == 1 and told.stderr.count("\n") == 1
    assert f"{tmp_path / 'none'} is no Python ≥ 3.11" in told.stderr
    torchless = tool(repository, PYTHON=sys.executable, PYTHONPATH=str(tmp_path))
    assert torchless.returncode == 1  # whatever the reason: no GPU, or no torch


def stage(gpu, code, **more):
    given = {"name": "some stage", "command": [sys.executable, "-c", code], "seconds": 30}
    return gpu.Stage(**(given | more))


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(gpu, tmp_path, capsys):
    child = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '100']); print(p.pid, flush=True); time.sleep(100)"
    hangs = stage(gpu, child, seconds=6)
    began = time.monotonic()
    hangs.run(began + 100, tmp_path)
    assert hangs.state == "out of time" and time.monotonic() - began < 30
    assert "some stage: out of time after" in capsys.readouterr().out
    pid = int((tmp_path / "logs" / "some-stage.txt").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.05)


def test_a_stage_says_why_it_failed_was_skipped_or_what_it_found(gpu, tmp_path):
    until = time.monotonic() + 100
    failed = stage(gpu, "raise ValueError('the reason')")
    failed.run(until, tmp_path)
    assert (failed.state, failed.why) == ("failed", "ValueError: the reason")
    skipped = stage(
        gpu, "", needs=gpu.missing("json", "no_such_module", programs=("no-such-tool",))
    )
    skipped.run(until, tmp_path)
    assert (skipped.state, skipped.why) == ("skipped", "missing: no_such_module, no-such-tool")
    late = stage(gpu, "")
    late.run(time.monotonic() + 1, tmp_path)
    assert (late.state, late.why) == ("skipped", "no time left")
    figures = tmp_path / "found.json"
    found = stage(gpu, f"open({str(figures)!r}, 'w').write('{{\"rows\": []}}')", figures=figures)
    found.run(until, tmp_path)
    assert (found.state, found.why, found.found) == ("done", "", {"rows": []})


def test_all_stages_fit_the_limit_of_a_stage_and_name_files_that_exist(gpu, tmp_path, repository):
    stages = gpu.plan(tmp_path, gpus=1)
    named = {s.name: s for s in stages}
    assert named["two ranks over NCCL"].needs == ["a second GPU"]
    assert not gpu.plan(tmp_path, gpus=2)[2].needs
    tests = [part for part in named["tests"].command if part.endswith(".py")]
    assert any("test_loader" in path for path in tests) and any("test_entropy" in p for p in tests)
    assert {f"train {recipe}" for recipe in gpu.RECIPES} <= set(named)
    for code in (gpu.OPERATORS, gpu.TWO_RANKS):
        compile(code, "code", "exec")


@pytest.mark.parametrize("recipe", ["dense-ssl", "mae", "restore", "segment"])
def test_what_every_recipe_is_measured_with_is_a_configuration(gpu, recipe):
    from em_train.cli import app
    from typer.testing import CliRunner

    options = gpu.RECIPES[recipe]
    told = CliRunner().invoke(app, [recipe, *options, "--show-config"])
    assert told.exit_code == 0, told.output


def test_the_tables_hold_every_figure(gpu):
    report = {
        "machine": {"GPU": "1 × H200", "torch": "2.11.0"},
        "stages": [
            {"name": "tests", "state": "failed", "took_s": 12.3, "why": "1 failed", "found": None},
            {
                "name": "kernels",
                "state": "done",
                "took_s": 30.0,
                "why": "",
                "found": {
                    "rows": [
                        {
                            **{"case": "entropy", "ours": 0.02512, "ours_graph": 0.0245},
                            **{"eager": 0.3, "eager_graph": None, "limit": 0.02},
                            **{"gb_per_s": 4180.0, "times_limit": 1.256},
                        }
                    ]
                },
            },
            {
                "name": "train mae",
                "state": "done",
                "took_s": 20.0,
                "why": "",
                "found": {
                    "rows": [
                        {"case": "samples/s with reading", "unit": "1/s", "ours": 1234.5},
                        {"case": "model FLOP utilisation", "unit": "1", "ours": 0.413},
                    ]
                },
            },
        ],
    }
    shown = gpu.tables(json.loads(json.dumps(report)))
    assert shown.startswith("GPU 1 × H200, torch 2.11.0.\n")
    assert "| tests | failed | 12 | 1 failed |" in shown
    assert "| entropy | 0.0251 | 0.0245 | 0.3 | – | 0.02 | 4.18e+03 | 1.26 |" in shown
    assert "| | mae |" in shown.replace("|  |", "| |")
    assert "| samples/s with reading | 1,234.5 1/s |" in shown
    assert "| model FLOP utilisation | 41.3% |" in shown

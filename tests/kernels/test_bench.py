"""The benchmark runs, reports what it says it does, and fails where a result is wrong."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from em_kernels import bench
from em_kernels.bench_cases import Case

KEYS = {"case", "unit", "correct", "ours", "eager", "limit", "minimum", "spread", "gb_per_s"}


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """Measuring sets the number of threads and an environment variable."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", os.environ.get("THP_MEM_ALLOC_ENABLE", "0"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_command_prints_a_table_and_writes_json_and_a_picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("rich")
    report, picture = tmp_path / "report.json", tmp_path / "plot.png"
    options = ["--quick", "--no-compile", "--json", str(report), "--plot", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", "em_kernels.bench", "patches", "crops", *options],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"},
    )
    assert done.returncode == 0, done.stderr
    assert "median times in ms" in done.stdout and "crops 16" in done.stdout
    written = json.loads(report.read_text())
    assert set(written) == {"machine", "conditions", "rows"}
    assert written["conditions"]["threads"] == 1 and written["conditions"]["huge_pages"]
    assert len(written["rows"]) == 6
    for row in written["rows"]:
        assert row.keys() >= KEYS
        assert row["correct"] and 0 < row["minimum"] <= row["ours"]
    with image.open(picture) as drawn:
        assert drawn.size[0] > 500


def test_every_operator_is_measured_and_right():
    report = bench.measure(
        ["entropy", "divergence"], quick=True, threads=2, device="cpu", compiled=False
    )
    assert len(report["rows"]) == 7
    assert all(row["correct"] for row in report["rows"])


@pytest.mark.parametrize("wrong", [np.nan, 1.001])
def test_wrong_results_and_nan_are_found(monkeypatch, capsys, wrong):
    from em_kernels import bench_cases

    def drifted(*_):
        call = lambda factor: lambda i: np.full(3, 2.0 * factor)  # noqa: E731
        yield Case("drifted", 1.0, {"ours": call(wrong), "eager": call(1), "limit": call(1)})

    monkeypatch.setattr(bench_cases, "crops", drifted)
    assert bench.main(["crops", "--quick"]) == 1
    assert "wrong results: drifted" in capsys.readouterr().err


def test_what_does_not_run_on_a_gpu_has_no_graph():
    on_cpu = {"ours": lambda i: torch.ones(3), "eager": lambda i: np.ones(3)}
    case = Case("on the CPU", 1.0, on_cpu)
    assert [bench._graph_milliseconds(case, name, 1) for name in on_cpu] == [None, None]


def test_an_unknown_operator_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["convolution"])
    assert stopped.value.code == 2
    assert "convolution" in capsys.readouterr().err

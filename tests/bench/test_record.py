"""The record that every benchmark leaves, and that the benchmarks fit the code that they measure."""

import ast
import importlib
import importlib.util
import json
import sys

import pytest
from em_kernels import bench as kernels


@pytest.fixture(scope="module")
def record(repository):
    spec = importlib.util.spec_from_file_location(
        "record", repository / "tools" / "bench" / "record.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def benches(repository):
    return sorted((repository / "tools" / "bench").glob("*/*.py"))


def test_a_record_is_whole_or_not_there(record, tmp_path):
    path = tmp_path / "figures.json"
    record.write(path, {"turns": 3}, [{"case": "a", "unit": "ms", "ours": 1.5}], runs=[1])
    found = json.loads(path.read_text())
    assert set(found) == {"machine", "conditions", "rows", "runs"}
    assert found["rows"] == [{"case": "a", "unit": "ms", "ours": 1.5}]
    with pytest.raises(TypeError):
        record.write(path, {"turns": {3}}, [])  # a set is no JSON
    assert json.loads(path.read_text()) == found
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]


def test_the_machine_is_named_in_full_and_alike_everywhere(record):
    found = record.machine()
    assert found["cpu"] and found["cores"] >= 1 and found["threads"] >= 1
    assert found["memory_gib"] is None or found["memory_gib"] > 0
    line = record.in_words(found)
    assert found["cpu"] in line and f"torch {found['torch']}" in line
    assert all(name in line for name in found["instructions"])
    alone = kernels._machine("cpu")
    assert list(alone) == list(found)
    same = ("cpu", "cores", "instructions", "memory_gib", "python", "torch")
    assert [alone[key] for key in same] == [found[key] for key in same]


def test_the_table_marks_what_did_not_hold(record, capsys):
    rows = [
        {"case": "kills", "unit": "of", "ours": 2, "limit": 3, "held": False, "slowest": "9 s"},
        {"case": "signals", "unit": "of", "ours": 3, "limit": 3, "held": True},
    ]
    record.show(rows)
    lines = capsys.readouterr().out.splitlines()
    (kills,) = (line for line in lines if "kills" in line)
    (signals,) = (line for line in lines if "signals" in line)
    assert "FAILED" in kills and "slowest: 9 s" in kills and "FAILED" not in signals


def test_every_bench_leaves_the_record(repository):
    """Those of em-kernels through `em_kernels.bench`, which writes its own."""
    found = benches(repository)
    assert len(found) >= 13
    for path in found:
        text = path.read_text()
        assert "platform" not in text, f"{path} describes a machine of its own; use record.py"
        if path.parent.name == "kernels":
            assert "from em_kernels.bench import main" in text, path
        else:
            assert "write(options.json," in text or "write(self.path," in text, path


def test_what_benches_import_exists(repository):
    """They run by hand and rarely, so a module that was moved would be missed late."""
    for path in benches(repository):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("em_"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.startswith("em_"):
                        assert sys.modules.get(alias.name) or importlib.import_module(alias.name)

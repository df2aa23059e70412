"""tools/bench/train/kill.py in short: a few kills of each kind."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_lost_by_a_kill(repository, tmp_path):
    script = repository / "tools" / "bench" / "train" / "kill.py"
    result = subprocess.run(
        [sys.executable, script, "--quick", "--json", tmp_path / "kills.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    rows = json.loads((tmp_path / "kills.json").read_text())["rows"]
    assert len(rows) == 9 and all(row["held"] for row in rows)
    assert sum(row["ours"] for row in rows if row["case"].startswith("kill -9")) == 6

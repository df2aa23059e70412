import os
import subprocess
import sys

import pytest

SAY = "import em_losses; print(em_losses.kernels_in_use())"


def choice(value):
    """What a fresh process with EM_KERNELS=value decides."""
    environment = {k: v for k, v in os.environ.items() if k != "EM_KERNELS"}
    environment |= {"EM_KERNELS": value} if value is not None else {}
    return subprocess.run(
        [sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, check=False
    )


def test_plain_torch_can_be_forced():
    assert choice("0").stdout.strip() == "False"


def test_a_wrong_choice_is_refused():
    result = choice("yes")
    assert result.returncode != 0 and "EM_KERNELS is 'yes'" in result.stderr


def test_insisting_works_where_the_kernels_are_installed():
    pytest.importorskip("em_kernels", reason="em-kernels is not installed here")
    assert choice("1").stdout.strip() == choice(None).stdout.strip() == "True"

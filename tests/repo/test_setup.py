"""tools/setup as a stranger meets it: nothing to do the second time, and a machine without a compiler."""

import os
import shutil
import stat
import subprocess

import pytest

FAKE_PYTHON = """#!/bin/sh
# Stands in for the Python of .venv: says what pip is asked to install.
case "$*" in
*"pip --version"*) exit 0 ;;
*install*) echo "$*" >>"$PIP_LOG" ;;
esac
"""


@pytest.fixture
def checkout(repository, tmp_path):
    """A copy of what tools/setup looks at, with a .venv whose pip only takes notes."""
    copy = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("build", "*.so", "*.egg-info", "__pycache__", "src")
    for name in ("tools", "packages"):
        shutil.copytree(repository / name, copy / name, ignore=ignore)
    for name in ("constraints.txt", "pyproject.toml"):
        shutil.copy(repository / name, copy / name)
    python = copy / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return copy


def setup(checkout, *arguments, path=os.environ["PATH"], **environment):
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    result = subprocess.run(
        [checkout / "tools" / "setup", *arguments],
        env={"PATH": path, "HOME": str(checkout), "PIP_LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stderr, log.read_text() if log.exists() else ""


@pytest.fixture
def without_compiler(tmp_path):
    """A PATH with everything that the script calls but a compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "dirname", "find", "sort", "xargs", "cksum", "cat", "env"):
        (tools / name).symlink_to(shutil.which(name))
    return str(tools)


def test_a_second_run_does_nothing_and_a_change_is_noticed(checkout):
    _, installed = setup(checkout)
    assert "em-kernels" in installed and "packages/em-data" in installed
    assert setup(checkout) == ("", "")
    assert "--group test" in setup(checkout, "test")[1]
    assert setup(checkout, "test") == setup(checkout) == ("", "")
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert "packages/em-data" in setup(checkout)[1]


def test_without_a_compiler_everything_else_is_installed_and_said_once(checkout, without_compiler):
    said, installed = setup(checkout, path=without_compiler)
    assert "packages/em-train" in installed and "packages/em-kernels" not in installed
    assert said.count("no C++ compiler") == 1
    assert setup(checkout, path=without_compiler) == ("", "")


def test_kernels_can_be_left_out(checkout):
    _, installed = setup(checkout, EM_KERNELS="0")
    assert "packages/em-train" in installed and "packages/em-kernels" not in installed

"""tools/setup as a stranger meets it: what it says, and what it does again when something changed."""

import os
import re
import shutil
import stat
import subprocess

import pytest

FAKE_PYTHON = """#!/bin/sh
# Stands in for the Python of .venv: says what pip is asked to install, and is as talkative as pip.
case "$*" in
*"pip --version"*) exit 0 ;;
*install*)
    echo "$*" >>"$PIP_LOG"
    echo "WARNING: Location 'file:///nowhere' is ignored" >&2
    case "$*" in *"${FAIL:-nothing}"*) echo "the reason"; exit 1 ;; esac
    ;;
esac
"""
FAKE_SMI = """#!/bin/sh
echo "$GPUS"
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
    write_script(copy / ".venv" / "bin" / "python", FAKE_PYTHON)
    record = copy / "packages" / "em-kernels" / "src" / "em_kernels" / "build.json"
    record.parent.mkdir(parents=True)
    record.write_text('{\n  "torch": "2.15.0",\n  "cuda": "compiled for 8.0+PTX"\n}\n')
    return copy


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def setup(checkout, *arguments, path=os.environ["PATH"], code=0, **environment):
    log = checkout / "pip.log"
    log.unlink(missing_ok=True)
    result = subprocess.run(
        [checkout / "tools" / "setup", *arguments],
        env={"PATH": path, "HOME": str(checkout), "PIP_LOG": str(log), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stderr
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


def test_only_its_own_lines_are_shown_with_the_seconds_of_every_stage(checkout):
    said, _ = setup(checkout)
    assert all(line.startswith("setup: ") for line in said.splitlines())
    for stage in ("installing torch", "installing the packages", "compiling em-kernels"):
        assert re.search(rf"setup: {stage}.*: done after \d+ s\n", said)
    assert "setup: CUDA compiled for 8.0+PTX\n" in said
    assert "is ignored" in (checkout / ".venv" / "setup.log").read_text()


def test_what_failed_shows_the_end_of_its_log_and_the_remedy(checkout):
    said, _ = setup(checkout, code=1, FAIL="packages/em-kernels")
    assert "compiling em-kernels: failed after" in said and "\nthe reason\n" in said
    assert "is ignored" not in said and ".venv/setup.log" in said
    assert said.endswith("EM_KERNELS=0 tools/setup leaves it out\n")
    assert "packages/em-kernels" in setup(checkout)[1]  # a failed set-up is not taken for done


def test_other_gpus_are_compiled_for_and_a_machine_without_one_keeps_what_is_there(
    checkout, tmp_path
):
    write_script(tmp_path / "gpu" / "nvidia-smi", FAKE_SMI)
    with_gpu = f"{tmp_path / 'gpu'}:{os.environ['PATH']}"
    assert "packages/em-kernels" in setup(checkout)[1]
    assert "packages/em-kernels" in setup(checkout, path=with_gpu, GPUS="9.0\n8.0\n9.0")[1]
    assert setup(checkout, path=with_gpu, GPUS="8.0\n9.0") == ("", "")
    assert setup(checkout) == ("", "")
    assert "packages/em-kernels" in setup(checkout, path=with_gpu, GPUS="10.0")[1]
    assert "packages/em-kernels" in setup(checkout, TORCH_CUDA_ARCH_LIST="all")[1]

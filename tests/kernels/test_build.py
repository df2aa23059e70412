"""Building, importing and reporting: what an installer and `emtrain info` rely on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from em_kernels import build_info
from em_kernels.build import ISA_NAMES
from em_kernels.library import CPU_LIBRARY, CUDA_LIBRARY

PACKAGE = Path(__file__).resolve().parents[2] / "packages" / "em-kernels"


def run_python(code, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def test_import_leaves_torch_alone():
    done = run_python("import sys, em_kernels; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_build_info_names_what_is_in_use(monkeypatch):
    info = build_info()
    assert info["isa_in_use"] == info["isa_available"]
    assert info["isa_available"] in ISA_NAMES
    assert info["cuda_compiled"] == CUDA_LIBRARY.exists()
    assert str(info["cuda"]).startswith("compiled for" if info["cuda_compiled"] else "skipped: ")
    monkeypatch.setenv("EM_KERNELS_ISA", "baseline")
    assert build_info()["isa_in_use"] == "baseline"


WITHOUT_CUDA = "import torch; torch.version.cuda = None; "


def test_a_torch_without_cuda_leaves_the_cuda_half_out_and_says_why():
    code = "import em_kernels; info = em_kernels.build_info(); print(info['cuda_loaded'], info['cuda'])"
    done = run_python(WITHOUT_CUDA + code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")
    assert "this torch is built without CUDA" in done.stdout or not CUDA_LIBRARY.exists()
    code = "import em_kernels.library as l; l.load_library(); print(torch.ops.loaded_libraries)"
    done = run_python(WITHOUT_CUDA + code)
    assert CPU_LIBRARY.name in done.stdout and CUDA_LIBRARY.name not in done.stdout


def test_a_torch_without_cuda_builds_the_cpu_half_alone():
    code = """
import runpy, sys
sys.argv = ["setup.py", "--version"]
built = runpy.run_path("setup.py")
print([extension.name for extension in built["extensions"]], built["cuda_sentence"])
"""
    done = run_python(WITHOUT_CUDA + code, cwd=PACKAGE)
    assert done.returncode == 0, done.stderr
    assert "em_kernels._cpu" in done.stdout and "em_kernels._cuda" not in done.stdout
    assert "skipped: this torch is built without CUDA" in done.stdout


def test_a_broken_library_is_an_import_error_with_the_reason(tmp_path):
    copy = tmp_path / "em_kernels"
    shutil.copytree(CPU_LIBRARY.parent, copy, ignore=shutil.ignore_patterns("*.so"))
    code = "import em_kernels.entropy"
    missing = run_python(code, PYTHONPATH=str(tmp_path))
    assert "ImportError: em_kernels needs its compiled library _cpu.abi3.so" in missing.stderr
    (copy / CPU_LIBRARY.name).write_text("not a library")
    broken = run_python(code, PYTHONPATH=str(tmp_path))
    assert "ImportError: em_kernels could not load _cpu.abi3.so" in broken.stderr
    assert "invalid ELF header" in broken.stderr or "too short" in broken.stderr


def run_setup(tmp_path, path, **environment):
    """Run setup.py of a copy with only `path` on PATH; `--version` builds nothing."""
    copy = tmp_path / "package"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("build", "*.so"))
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=copy,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
    )


def test_no_compiler_is_one_line(tmp_path):
    done = run_setup(tmp_path, path=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.startswith("em-kernels: a C++20 compiler is needed")
    assert done.stderr.count("\n") == 1


def test_no_torch_is_one_line(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    done = run_setup(tmp_path, path=os.environ["PATH"], PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.startswith("em-kernels: torch is needed to build")
    assert done.stderr.count("\n") == 1


def test_the_libraries_use_the_stable_abi_alone():
    pytest.importorskip("torch_abi_audit")
    audit = Path(sys.executable).with_name("torch-abi-audit")
    libraries = [path for path in (CPU_LIBRARY, CUDA_LIBRARY) if path.exists()]
    done = subprocess.run(
        [audit, "--check", "torch", "--json", *libraries], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2.10" in done.stdout


KNOWN_BY_NVCC = "50 60 70 75 80 86 90 100 120"
ARCHITECTURES = [  # what nvcc knows, what is asked for, the GPUs that are there, what is compiled
    (KNOWN_BY_NVCC, "", [], "8.0+PTX"),
    ("75 90 100", "", [], "9.0+PTX"),
    ("50 60 70", "", [], "7.0+PTX"),
    (KNOWN_BY_NVCC, "", [(9, 0), (9, 0)], "9.0"),
    (KNOWN_BY_NVCC, "", [(9, 0), (8, 6)], "8.6;9.0"),
    ("70 80 90", "", [(12, 0)], "9.0+PTX"),
    (KNOWN_BY_NVCC, "8.6", [(9, 0)], "8.6"),
    (KNOWN_BY_NVCC, "all", [(9, 0)], "7.0;7.5;8.0;9.0;10.0+PTX"),
    ("50 60 70 75 80 86 89 90", "all", [], "7.0;7.5;8.0;9.0+PTX"),
    ("35 37", "", [], "skipped: nvcc release 12.4 names none of 7.0, 7.5, 8.0, 9.0, 10.0; set"),
]


def test_one_architecture_is_compiled_unless_more_gpus_are_there_or_all_are_asked_for(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        """#!/bin/sh
case $1 in
  --version) echo "release 12.4, V12.4.131" ;;
  --list-gpu-arch) for number in $KNOWN; do echo compute_$number; done ;;
esac
"""
    )
    nvcc.chmod(0o755)
    (tmp_path / "libcudart_static.a").touch()
    code = f"""
import os, runpy, sys, torch
torch.version.cuda = "12.8"
sys.argv = ["setup.py", "--version"]
built = runpy.run_path("setup.py")
print("em_kernels._cuda" in [extension.name for extension in built["extensions"]])
for known, wanted, gpus, _ in {ARCHITECTURES}:
    os.environ |= {{"KNOWN": known, "TORCH_CUDA_ARCH_LIST": wanted}}
    torch.cuda.is_available = lambda: bool(gpus)
    torch.cuda.device_count = lambda: len(gpus)
    torch.cuda.get_device_capability = lambda i: gpus[i]
    print(built["cuda_state"](torch)[1], "|", os.environ["TORCH_CUDA_ARCH_LIST"])
"""
    given = {"CUDA_HOME": str(tmp_path), "KNOWN": "70 80", "TORCH_CUDA_ARCH_LIST": ""}
    done = run_python(code, cwd=PACKAGE, **given)
    assert done.returncode == 0, done.stderr
    loaded, *lines = done.stdout.splitlines()[-1 - len(ARCHITECTURES) :]
    assert loaded == "True"
    for line, (_, asked, gpus, compiled) in zip(lines, ARCHITECTURES, strict=True):
        if compiled.startswith("skipped"):
            assert line.startswith(compiled) and line.endswith("| ")
            continue
        assert line.startswith(f"compiled for {compiled} (")
        assert line.endswith(f"with nvcc release 12.4 | {compiled}")  # what torch is told
        assert ("no GPU here" in line) == (not gpus and not asked)

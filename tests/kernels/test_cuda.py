"""The CUDA kernels on a machine without a GPU: the same source on the CPU, and its registers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from em_kernels.library import CUDA_LIBRARY, load_library
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "packages" / "em-kernels" / "csrc"
ARCHITECTURES = (80, 90, 100)


def test_kernels_agree_with_float64_under_the_address_sanitizer(tmp_path):
    program = tmp_path / "run"
    subprocess.run(
        [
            *("g++", "-std=c++20", "-O1", "-fsanitize=address,undefined"),
            *("-fno-sanitize-recover=undefined", f"-I{HERE / 'emulation'}", f"-I{SOURCES}"),
            *(str(HERE / "emulation" / "run.cpp"), "-o", str(program)),
        ],
        check=True,
    )
    # Fibres change stacks behind the sanitizer's back.
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    done = subprocess.run(
        [program], capture_output=True, text=True, env={**os.environ, "ASAN_OPTIONS": options}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok\n") == done.stdout.count("\n") > 60


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stem", ["entropy", "divergence", "patches"])
def test_kernels_do_not_spill(stem, architecture, tmp_path):
    """Every kernel but those for more than 64 classes at compile time, whose report is printed."""
    code = f"arch=compute_{architecture},code=sm_{architecture}"
    flags = ["-std=c++20", "-O3", "--ftz=true", "-DUSE_CUDA", "-gencode", code, "-Xptxas", "-v"]
    flags.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    folders = [f"-I{path}" for path in (SOURCES, *include_paths())]
    source = SOURCES / "cuda" / f"{stem}.cu"
    done = subprocess.run(
        ["nvcc", *flags, *folders, "-c", source, "-o", tmp_path / "out.o"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = re.findall(
        r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        done.stderr,
        re.DOTALL,
    )
    assert len(report) >= 5
    for name, spill, registers in report:
        if "Li128E" in name:
            print(f"sm_{architecture} {name}: {spill} bytes spilled, {registers} registers")
        else:
            assert spill == "0", f"{name} spills {spill} bytes with {registers} registers"


def test_the_kernels_of_every_operator_are_registered():
    load_library()
    if not CUDA_LIBRARY.exists():
        pytest.skip("the CUDA half was not compiled")
    names = [
        name.removeprefix("em_kernels::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("em_kernels::") and "isa" not in name
    ]
    assert len(names) >= 13
    for name in names:
        for key in ("CPU", "CUDA"):
            has = torch._C._dispatch_has_kernel_for_dispatch_key(f"em_kernels::{name}", key)
            assert has, f"{name} has no kernel for {key}"

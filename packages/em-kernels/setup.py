"""Builds the operator libraries: the CPU one always, the CUDA one when nvcc is found.

The libraries use only the stable ABI of LibTorch, so one build serves every torch from 2.10 on.
What was built, and why something was not, is written to `build.json` beside them.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
# The oldest stable ABI that the sources ask for: torch 2.10.
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
# V100, T4, A100, H100, B200: each also serves the later ones of its generation.
CUDA_ARCHITECTURES = ("7.0", "7.5", "8.0", "9.0", "10.0")
# Built where no GPU is, as on the login node of a cluster: A100 and its generation run it as it is,
# later ones translate its PTX when it is first used. Earlier ones compute no bfloat16.
WITHOUT_GPU = "8.0"


def stop(message: str) -> None:
    """End the installation with one line instead of a traceback."""
    sys.exit(f"em-kernels: {message}")


def require_compiler() -> None:
    """Stop unless a C++ compiler is there."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        stop(
            f"a C++20 compiler is needed, none of {', '.join(wanted)} was found; install g++ or"
            " clang++, or leave em-kernels out (every other package works without it)"
        )


def find_cuda_home() -> str | None:
    """Return the root of the CUDA toolkit, following a wrapper script to the real one."""
    if home := os.environ.get("CUDA_HOME"):
        return home
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    # nvcc on the PATH may be a script that calls the real one elsewhere; a dry run names its root.
    dry = subprocess.run(
        [nvcc, "-dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
    )
    top = re.search(r"TOP=(\S+)", dry.stderr)
    return os.path.realpath(top.group(1)) if top else str(Path(nvcc).resolve().parent.parent)


def find_gpus(torch) -> list[str]:
    """Return the compute capabilities of the GPUs that torch sees here, each once."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {torch.cuda.get_device_capability(i) for i in range(count)}
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def choose_architectures(nvcc: Path, gpus: list[str]) -> tuple[str, str] | None:
    """Return the architectures as torch wants them listed, and why these; None if nvcc knows none.

    Those of TORCH_CUDA_ARCH_LIST (`all`: every one of CUDA_ARCHITECTURES), else those of the GPUs
    that are here, else one that serves most. Every further one costs as much time as the first.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked and asked != "all":
        return asked, "TORCH_CUDA_ARCH_LIST"
    listed = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True
    ).stdout.split()

    def known(names) -> list[str]:
        return [name for name in names if f"compute_{name.replace('.', '')}" in listed]

    every = known(CUDA_ARCHITECTURES)
    if not every:
        return None
    latest = every[-1] + "+PTX"  # later GPUs translate it
    if asked == "all":
        return ";".join([*every[:-1], latest]), "all that nvcc knows"
    if gpus:
        here = known(gpus)
        return ";".join(here if len(here) == len(gpus) else [*here, latest]), "the GPUs here"
    later = [name for name in every if float(name) >= float(WITHOUT_GPU)]
    return (later or every[-1:])[0] + "+PTX", "no GPU here: this one and later ones"


def cuda_state(torch) -> tuple[str | None, str]:
    """Return the toolkit's root and a sentence; the root is None where CUDA is skipped."""
    if torch.version.cuda is None:
        return None, "skipped: this torch is built without CUDA"
    home = find_cuda_home()
    if home is None:
        return None, "skipped: nvcc was not found; put it on PATH or set CUDA_HOME"
    nvcc = Path(home, "bin", "nvcc")
    if not nvcc.exists():
        return None, f"skipped: {nvcc} does not exist; set CUDA_HOME to a CUDA toolkit"
    listed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"release (\d+)\.(\d+)", listed)
    if version is None or version.group(1) != torch.version.cuda.split(".")[0]:
        found = version.group(0) if version else "of unknown version"
        return (
            None,
            f"skipped: nvcc {found} differs in major version from torch's CUDA {torch.version.cuda}",
        )
    chosen = choose_architectures(nvcc, find_gpus(torch))
    if chosen is None:
        return None, (
            f"skipped: nvcc {version.group(0)} names none of {', '.join(CUDA_ARCHITECTURES)};"
            " set TORCH_CUDA_ARCH_LIST"
        )
    wanted, why = chosen
    # Without a GPU torch cannot guess the architectures and stops with an IndexError.
    os.environ["TORCH_CUDA_ARCH_LIST"] = wanted
    return home, f"compiled for {wanted} ({why}) with nvcc {version.group(0)}"


require_compiler()
# ninja, installed beside this Python, is not on PATH when pip is called by its full path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
try:
    import torch
except ImportError as error:
    stop(
        f"{error.name} is needed to build; pip install 'torch>=2.10' pybind11 ninja, then install"
        " with --no-build-isolation"
    )

cuda_home, cuda_sentence = cuda_state(torch)
if cuda_home:
    # torch reads this when its build helpers are imported, hence before the import below.
    os.environ["CUDA_HOME"] = cuda_home

from torch.utils import cpp_extension  # noqa: E402

try:
    import pybind11

    PYBIND11 = [pybind11.get_include()]
except ImportError:  # torch brings its headers as well
    PYBIND11 = cpp_extension.include_paths()


def extension(name: str, folder: str, suffix: str, libraries: list[str], flags: dict) -> Extension:
    """Describe one operator library: every source in a folder of csrc, linked to torch's C shim."""
    sources = sorted(Path("csrc", folder).glob(f"*{suffix}"))
    if folder == "cpu":
        sources.append(Path("csrc", "library.cpp"))
    return Extension(
        f"em_kernels.{name}",
        sources=[str(path) for path in sources],
        # Headers are listed so that changing one rebuilds the library.
        depends=[str(path) for path in sorted(Path("csrc").rglob("*.[hc]*"))],
        include_dirs=[str(HERE / "csrc"), *cpp_extension.include_paths()],
        library_dirs=cpp_extension.library_paths(),
        libraries=libraries,
        extra_compile_args=flags,
        py_limited_api=True,
        language="c++",
    )


CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Vectors wider than the baseline are passed only between functions that are inlined.
    "-Wno-psabi",
    # Raised by the header of the AVX-512 intrinsics of gcc 12 itself.
    "-Wno-maybe-uninitialized",
    TARGET,
]
extensions = [
    extension("_cpu", "cpu", ".cpp", ["torch_cpu"], {"cxx": CXX_FLAGS}),
    # Without torch, and without the stable ABI of Python, which pybind11 does not support.
    Extension(
        "em_kernels._crops",
        sources=[str(Path("csrc", "crops.cpp"))],
        include_dirs=PYBIND11,
        extra_compile_args={"cxx": ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden"]},
        extra_link_args=["-pthread"],
        language="c++",
    ),
]
if cuda_home:
    nvcc_flags = [
        "-O3",
        "-std=c++20",
        "--ftz=true",
        "--threads=2",
        "-Xcompiler=-fvisibility=hidden",
        # torch forbids the plain conversions from and to half types; the kernels use them.
        "-U__CUDA_NO_HALF_CONVERSIONS__",
        "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
        "-DUSE_CUDA",
        TARGET,
    ]
    cuda = extension(
        "_cuda", "cuda", ".cu", ["torch_cpu", "torch_cuda"], {"cxx": CXX_FLAGS, "nvcc": nvcc_flags}
    )
    cuda.include_dirs.append(str(Path(cuda_home, "include")))
    # The static runtime keeps the library free of one libcudart version.
    cuda.extra_objects = [
        str(next(Path(cuda_home).glob("**/libcudart_static.a")).resolve()),
    ]
    extensions.append(cuda)


class BuildLibraries(cpp_extension.BuildExtension):
    """torch's builder, with objects kept between builds and a record of what was built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # pip builds editable installs in a fresh temporary folder; here ninja finds its objects.
        self.build_temp = str(HERE / "build" / f"torch-{torch.__version__}")

    def run(self) -> None:
        super().run()
        record = Path(self.get_ext_fullpath("em_kernels._cpu")).with_name("build.json")
        if cuda_home is None:
            record.with_name("_cuda.abi3.so").unlink(missing_ok=True)  # of an earlier build
        built = {"torch": torch.__version__, "cuda": cuda_sentence}
        record.write_text(json.dumps(built, indent=2) + "\n")


setup(ext_modules=extensions, cmdclass={"build_ext": BuildLibraries})

"""Loads the compiled operator libraries, once, and says why when that fails.

A missing or broken library is an ImportError: falling back in silence would only be slow.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["CPU_LIBRARY", "CUDA_LIBRARY", "cuda_loads", "load_library"]

CPU_LIBRARY = Path(__file__).with_name("_cpu.abi3.so")
CUDA_LIBRARY = Path(__file__).with_name("_cuda.abi3.so")


def cuda_loads() -> bool:
    """Return whether the CUDA half is there and this torch can load it."""
    return CUDA_LIBRARY.exists() and torch.version.cuda is not None


@cache
def load_library() -> Any:
    """Load the libraries and return the namespace `torch.ops.em_kernels`."""
    if not CPU_LIBRARY.exists():
        raise ImportError(
            f"em_kernels needs its compiled library {CPU_LIBRARY.name}, which is not in"
            f" {CPU_LIBRARY.parent}; build it with"
            " `pip install --no-build-isolation ./packages/em-kernels`"
        )
    for path in [CPU_LIBRARY, CUDA_LIBRARY] if cuda_loads() else [CPU_LIBRARY]:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            raise ImportError(
                f"em_kernels could not load {path.name}: {error}; it needs torch >= 2.10 (this is"
                f" {torch.__version__}) and is rebuilt by"
                " `pip install --no-build-isolation ./packages/em-kernels`"
            ) from error
    return torch.ops.em_kernels

"""What was built, and what of it this machine uses; `emtrain info` prints it."""

import json
from importlib.metadata import version
from pathlib import Path

__all__ = ["build_info"]

ISA_NAMES = ("baseline", "avx2", "avx512")


def build_info() -> dict[str, str | bool]:
    """Return the version, the instruction sets, and the state of the CUDA half.

    Keys: `version`; `isa_available` and `isa_in_use`, each "baseline", "avx2" or "avx512";
    `cuda_compiled`, `cuda_loaded`; `cuda`, a sentence that says for what it was compiled and why it
    was skipped, when building or here; `built_with_torch`.
    """
    from em_kernels.library import CUDA_LIBRARY, cuda_loads, load_library

    operators = load_library()
    record = Path(__file__).with_name("build.json")
    built = json.loads(record.read_text())
    if CUDA_LIBRARY.exists() and not cuda_loads():
        built["cuda"] += "; skipped here: this torch is built without CUDA"
    return {
        "version": version("em-kernels"),
        "isa_available": ISA_NAMES[operators.isa_available()],
        "isa_in_use": ISA_NAMES[operators.isa_in_use()],
        "cuda_compiled": CUDA_LIBRARY.exists(),
        "cuda_loaded": cuda_loads(),
        "cuda": built["cuda"],
        "built_with_torch": built["torch"],
    }

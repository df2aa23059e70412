"""Compiled operators for electron-microscopy deep learning, one module per operator.

Importing this package does not import torch; importing an operator's module does:

    from em_kernels.entropy import entropy_sums
"""

from em_kernels.build import build_info

__all__ = ["__version__", "build_info"]

__version__ = "0.1.0"

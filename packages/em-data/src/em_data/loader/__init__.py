"""Batches for torch: crops read by threads of this process, ahead of the device."""

from em_data.loader.batch import Batch
from em_data.loader.loader import Loader

__all__ = ["Batch", "Loader"]

"""Electron-microscopy volumes: open, sample, synthesise, write.

    open_volume -> Volume -> StackSampler -> em_data.loader.Loader -> Batch

Only `em_data.loader` and `em_data.augment` need torch; import them by name.
"""

from em_data.errors import (
    BoxError,
    StoreExistsError,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
)
from em_data.formats import open_volume
from em_data.geometry import Box, tiles
from em_data.sampler import Key, Sample, StackConfig, StackSampler, Stream, random_at
from em_data.stitch import new_store
from em_data.volume import Level, Volume

__all__ = [
    "Box",
    "BoxError",
    "Key",
    "Level",
    "Sample",
    "StackConfig",
    "StackSampler",
    "StoreExistsError",
    "Stream",
    "Volume",
    "VolumeFormatError",
    "VolumeNotFoundError",
    "VolumeReadError",
    "new_store",
    "open_volume",
    "random_at",
    "tiles",
]

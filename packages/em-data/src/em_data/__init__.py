"""Electron-microscopy volumes: open, sample, synthesise, write.

    open_volume -> Volume -> PlaceSampler or BlockSampler -> em_data.loader.Loader -> Batch

Only `em_data.loader` and `em_data.augment` need torch; import them by name.
"""

from em_data.blocks import BlockPlan, BlockSampler, choose_sampler, plan_blocks
from em_data.errors import (
    BoxError,
    ExtraMissingError,
    ForkError,
    StoreExistsError,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
)
from em_data.formats import open_volume
from em_data.geometry import Box, tiles
from em_data.intensity import GreyRange, grey_range
from em_data.sampler import (
    CubeConfig,
    Key,
    PlaceSampler,
    Sample,
    StackConfig,
    Stream,
    random_at,
)
from em_data.stitch import new_store
from em_data.volume import Level, Volume

__all__ = [
    "BlockPlan",
    "BlockSampler",
    "Box",
    "BoxError",
    "CubeConfig",
    "ExtraMissingError",
    "ForkError",
    "GreyRange",
    "Key",
    "Level",
    "PlaceSampler",
    "Sample",
    "StackConfig",
    "StoreExistsError",
    "Stream",
    "Volume",
    "VolumeFormatError",
    "VolumeNotFoundError",
    "VolumeReadError",
    "choose_sampler",
    "grey_range",
    "new_store",
    "open_volume",
    "plan_blocks",
    "random_at",
    "tiles",
]

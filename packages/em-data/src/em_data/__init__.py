"""Electron-microscopy volumes: open, sample, synthesise, write.

    open_volume -> Volume -> PlaceSampler or BlockSampler -> em_data.loader.Loader -> Batch

Only `em_data.loader`, `em_data.augment` and what augmentation is made of need torch; import them by
name.
"""

from em_data.binning import binned
from em_data.blend import TileGrid, predict_block
from em_data.blocks import BlockSampler, choose_sampler
from em_data.blockwise import BlockStore, attach_blocks, begin_blocks
from em_data.errors import (
    BlockDamagedError,
    BlockMissingError,
    BoxError,
    DiskFullError,
    ExtraMissingError,
    ForkError,
    StoreExistsError,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
)
from em_data.figures import describe
from em_data.formats import open_volume
from em_data.geometry import Box, tiles
from em_data.intensity import GreyRange, grey_range
from em_data.labels import Labels, place_labels, place_mask
from em_data.places import Region
from em_data.plan import BlockPlan, plan_blocks
from em_data.sampler import (
    CubeConfig,
    Key,
    PlaceSampler,
    Sample,
    StackConfig,
    Stream,
    random_at,
)
from em_data.split import Split, SplitConfig, hold_out
from em_data.stitch import ImageConfig, new_store
from em_data.volume import Level, Volume

__all__ = [
    "BlockDamagedError",
    "BlockMissingError",
    "BlockPlan",
    "BlockSampler",
    "BlockStore",
    "Box",
    "BoxError",
    "CubeConfig",
    "DiskFullError",
    "ExtraMissingError",
    "ForkError",
    "GreyRange",
    "ImageConfig",
    "Key",
    "Labels",
    "Level",
    "PlaceSampler",
    "Region",
    "Sample",
    "Split",
    "SplitConfig",
    "StackConfig",
    "StoreExistsError",
    "Stream",
    "TileGrid",
    "Volume",
    "VolumeFormatError",
    "VolumeNotFoundError",
    "VolumeReadError",
    "attach_blocks",
    "begin_blocks",
    "binned",
    "choose_sampler",
    "describe",
    "grey_range",
    "hold_out",
    "new_store",
    "open_volume",
    "place_labels",
    "place_mask",
    "plan_blocks",
    "predict_block",
    "random_at",
    "tiles",
]

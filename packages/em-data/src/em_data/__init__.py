"""Electron-microscopy volumes: open, sample, synthesise, write.

    open_volume -> Volume -> PlaceSampler or BlockSampler -> em_data.loader.Loader -> Batch

Only `em_data.loader`, `em_data.augment` and what augmentation is made of need torch; import them by
name.
"""

from em_data.binning import binned, interpolated
from em_data.errors import (
    BlockDamagedError,
    BlockMissingError,
    BoxError,
    BudgetError,
    DiskFullError,
    ExtraMissingError,
    ForkError,
    NotFiniteError,
    StoreExistsError,
    VolumeFormatError,
    VolumeNotFoundError,
    VolumeReadError,
)
from em_data.formats.address import open_volume
from em_data.formats.image_labels import ImageLabels, match_labels
from em_data.formats.images import Images, open_images
from em_data.geometry import Box, tiles
from em_data.intensity import GreyRange, grey_range, nan_share
from em_data.labels import Labels, place_labels, place_mask, place_target
from em_data.sampler.block_plan import BlockPlan, plan_blocks
from em_data.sampler.block_shuffle import BlockSampler, choose_sampler
from em_data.sampler.crop import CubeConfig, Sample, StackConfig
from em_data.sampler.describe import describe
from em_data.sampler.place_sampler import PlaceSampler
from em_data.sampler.places import Region
from em_data.sampler.randomness import Key, Stream, random_at
from em_data.sampler.split import ImageSplit, Split, SplitConfig, hold_out, hold_out_images
from em_data.volume import Level, Volume
from em_data.writer.blockwise import BlockStore, attach_blocks, begin_blocks
from em_data.writer.store import ImageConfig, new_store
from em_data.writer.tiling import TileGrid, predict_block

__all__ = [
    "BlockDamagedError",
    "BlockMissingError",
    "BlockPlan",
    "BlockSampler",
    "BlockStore",
    "Box",
    "BoxError",
    "BudgetError",
    "CubeConfig",
    "DiskFullError",
    "ExtraMissingError",
    "ForkError",
    "GreyRange",
    "ImageConfig",
    "ImageLabels",
    "ImageSplit",
    "Images",
    "Key",
    "Labels",
    "Level",
    "NotFiniteError",
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
    "hold_out_images",
    "interpolated",
    "match_labels",
    "nan_share",
    "new_store",
    "open_images",
    "open_volume",
    "place_labels",
    "place_mask",
    "place_target",
    "plan_blocks",
    "predict_block",
    "random_at",
    "tiles",
]

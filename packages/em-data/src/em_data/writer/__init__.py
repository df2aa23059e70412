"""OME-Zarr written block by block: stores, levels, tiles, and how a store is gone on with."""

from em_data.writer.blockwise import BlockStore, attach_blocks, begin_blocks
from em_data.writer.store import ImageConfig, new_store
from em_data.writer.tiling import TileGrid, predict_block

__all__ = [
    "BlockStore",
    "ImageConfig",
    "TileGrid",
    "attach_blocks",
    "begin_blocks",
    "new_store",
    "predict_block",
]

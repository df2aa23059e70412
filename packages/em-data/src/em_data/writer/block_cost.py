"""The memory and the work that a size of block costs, and the size that costs least."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

from em_data.geometry import Box, Int3, int3
from em_data.writer.tiling import TileGrid

OVERHEAD_BYTES = 32 << 20  # of threads and encoders, and what the allocator does not give back


class BlockFigures(NamedTuple):
    """What a size of block costs."""

    block_vx: Int3
    peak_bytes: int
    """Memory of one process that predicts and writes a block, beside what the model itself takes."""
    computed: float
    """Voxels that the model is given for each voxel of the volume."""


def block_figures(
    shape: Int3,
    grid: TileGrid,
    block_vx: Int3,
    *,
    channels: int,
    raw_itemsize: int = 1,
    stored_bytes: int = 1,
) -> BlockFigures:
    """The cost of blocks of one size, known before the first one is computed.

    Args:
        shape: voxels of the volume.
        grid: how it is cut for the model.
        block_vx: what is asked for at once.
        channels: outputs of the model.
        raw_itemsize: bytes of a voxel of the volume.
        stored_bytes: bytes that are written for each voxel, over all images.
    """
    block = int3([min(b, n) for b, n in zip(block_vx, shape, strict=True)])
    axes = [_along(axis, shape, grid, b) for axis, b in enumerate(block)]
    whole = 4 * channels * math.prod(block)
    source = raw_itemsize * math.prod(widest for _, widest in axes)
    run = grid.batch * math.prod(grid.input_vx) * (raw_itemsize + 5 * channels)
    add = 4 * (channels + 2) * math.prod(grid.tile_vx)
    stored = 3 * stored_bytes * math.prod(block)  # as made, copied into chunks, and encoded
    # Mirroring copies what was read.
    peak = OVERHEAD_BYTES + max(2 * source, source + run + add + whole, whole + stored)
    computed = math.prod(tiles * i for (tiles, _), i in zip(axes, grid.input_vx, strict=True))
    return BlockFigures(int3(block_vx), peak, computed / math.prod(shape))


@lru_cache
def _along(axis: int, shape: Int3, grid: TileGrid, block: int) -> tuple[int, int]:
    """Tiles that all blocks compute along one axis, and the most voxels that one of them reads."""
    tiles, widest = 0, 0
    for start in range(0, shape[axis], block):
        origin, size = [0, 0, 0], [1, 1, 1]
        origin[axis], size[axis] = start, min(block, shape[axis] - start)
        read = grid.source(shape, Box(int3(origin), int3(size))).size_vx[axis]
        widest = max(widest, read)
        tiles += (read - grid.input_vx[axis]) // grid.step_vx[axis] + 1
    return tiles, widest


def choose_block(
    shape: Int3,
    grid: TileGrid,
    file_vx: Int3,
    *,
    budget_bytes: int,
    channels: int,
    raw_itemsize: int = 1,
    stored_bytes: int = 1,
    at_least: int = 1,
) -> BlockFigures:
    """The block that computes the least twice, within a memory budget: larger ones do.

    `file_vx` is the chunk or shard of the output; `at_least` blocks are made of the volume, so that
    there is one for every process.
    """

    def figures(block: tuple[int, ...]) -> BlockFigures:
        return block_figures(
            shape,
            grid,
            int3(block),
            channels=channels,
            raw_itemsize=raw_itemsize,
            stored_bytes=stored_bytes,
        )

    # Whole files, of an even number of voxels; along each axis once, twice, … as many.
    sides = []
    for f, n in zip(file_vx, shape, strict=True):
        unit = f * (1 + f % 2)
        sides.append([unit << i for i in range(max(1, math.ceil(math.log2(n / unit)) + 1))])
    found = [figures(block) for block in itertools.product(*sides)]
    fitting = [figures for figures in found if figures.peak_bytes <= budget_bytes]
    if not fitting:
        least = min(found, key=lambda figures: figures.peak_bytes)
        raise MemoryError(
            f"one block of {least.block_vx} voxels takes {least.peak_bytes / 2**20:.0f} MiB, more "
            f"than the budget of {budget_bytes / 2**20:.0f} MiB; allow more, or take smaller tiles "
            "or files"
        )

    def blocks(figures: BlockFigures) -> int:
        return math.prod(-(-n // b) for n, b in zip(shape, figures.block_vx, strict=True))

    wanted = min(at_least, max(map(blocks, fitting)))
    enough = [figures for figures in fitting if blocks(figures) >= wanted]
    return min(enough, key=lambda figures: (round(figures.computed, 3), figures.peak_bytes))

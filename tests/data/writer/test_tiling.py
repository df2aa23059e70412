"""Tiles: what is stitched is what one run over the whole volume gives, whatever the blocks."""

import itertools

import numpy as np
import pytest
from em_data import Box, BoxError, open_volume, tiles
from em_data.writer.block_cost import OVERHEAD_BYTES, block_figures, choose_block
from em_data.writer.tiling import TileGrid, as_classes, as_uint8, predict_block, read_mirrored
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

SHAPE = (9, 50, 61)
KERNEL = np.random.default_rng(1).integers(-3, 4, (3, 5, 5))


@pytest.fixture(scope="module")
def volume():
    return open_volume(np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8))


def valid(tiles):
    """A linear model without padding, of two channels: (B, Z, Y, X) -> (B, 2, Z − 2, Y − 4, X − 4)."""
    windows = np.lib.stride_tricks.sliding_window_view(tiles.astype(np.int64), (3, 5, 5), (1, 2, 3))
    out = np.einsum("bzyxijk,ijk->bzyx", windows, KERNEL)
    return np.stack([out, 2 * out + 1], 1).astype(np.float32)


def stitched(volume, model, grid, block_vx):
    whole = None
    for box in tiles(volume.shape, block_vx):
        block = predict_block(volume, model, grid, box)
        if whole is None:
            whole = np.full((len(block), *volume.shape), np.nan, np.float32)
        whole[(slice(None), *box.slices)] = block
    return whole


@pytest.mark.parametrize("block_vx", [(9, 50, 61), (4, 16, 32), (1, 50, 7), (5, 13, 61)])
@pytest.mark.parametrize(
    ("tile_vx", "batch"), [((1, 16, 16), 3), ((4, 32, 8), 1), ((2, 64, 64), 2)]
)
def test_a_model_without_padding_is_exact(volume, tile_vx, batch, block_vx):
    """scipy mirrors at the same voxels, in one run over the whole volume."""
    once = correlate(volume.array.astype(np.int64), KERNEL, mode="mirror")
    grid = TileGrid(tile_vx=tile_vx, halo_vx=(1, 2, 2), batch=batch)
    whole = stitched(volume, valid, grid, block_vx)
    np.testing.assert_array_equal(whole, np.stack([once, 2 * once + 1]))


def padded(tiles):
    """Zero padding, as U-Nets have it: wrong within two voxels of the border of its tile."""
    kernel = KERNEL[None] / 50
    return correlate(tiles.astype(np.float64), kernel, mode="constant")[:, None].astype(np.float32)


def test_a_halo_as_wide_as_the_padding_is_wrong_is_exact(volume):
    once = correlate(volume.array.astype(np.float64), KERNEL / 50, mode="mirror")
    grid = TileGrid(tile_vx=(3, 16, 16), halo_vx=(1, 2, 2), overlap_vx=(1, 4, 4))
    np.testing.assert_allclose(stitched(volume, padded, grid, (9, 32, 32))[0], once, atol=1e-4)


@pytest.mark.parametrize("blend", ["cosine", "bump"])
def test_bytes_do_not_depend_on_blocks(volume, blend):
    """Not even for a model that is wrong at its borders and looks at the whole of its batch."""

    def model(tiles):
        return padded(tiles) + tiles.mean(dtype=np.float32)

    grid = TileGrid(tile_vx=(3, 24, 20), overlap_vx=(1, 8, 15), blend=blend, batch=2)
    first, *others = (
        stitched(volume, model, grid, block_vx)
        for block_vx in ((9, 50, 61), (2, 50, 16), (4, 17, 61), (3, 8, 40))
    )
    assert np.isfinite(first).all()
    for other in others:
        assert other.tobytes() == first.tobytes()


def test_blending_hides_the_borders_of_tiles(volume):
    """The jump across a border of tiles is that of other places; cut hard, it is much larger."""

    def uneven(tiles):  # wrong by its place in the tile, as padding makes it
        ramp = np.linspace(-1, 1, tiles.shape[-1], dtype=np.float32) ** 3
        return np.broadcast_to(ramp, (len(tiles), 1, *tiles.shape[1:]))

    def worst(**options):
        grid = TileGrid(tile_vx=(1, 32, 32), **options)
        rows = stitched(volume, uneven, grid, (9, 50, 61))[0, 0, 0]
        return np.abs(np.diff(rows)).max()

    hard = worst()
    assert hard > 1.9
    for blend in ("cosine", "bump"):
        assert worst(overlap_vx=(0, 16, 16), blend=blend) < hard / 5


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_weights_of_all_tiles_add_up_to_one(data):
    size = data.draw(st.integers(1, 40))
    tile = data.draw(st.integers(1, 17))
    overlap = data.draw(st.integers(0, tile - 1))
    blend = data.draw(st.sampled_from(["cosine", "bump"]))
    grid = TileGrid(tile_vx=(1, 1, tile), overlap_vx=(0, 0, overlap), blend=blend)
    count = grid.count((1, 1, size))[2]
    total = np.zeros((count - 1) * (tile - overlap) + tile)
    assert len(total) >= size and len(total) - (tile - overlap) < max(size, overlap + 1)
    for index in range(count):
        weights = grid.weights(2, index, count)
        assert (weights > 0).all()
        total[index * (tile - overlap) :][:tile] += weights
    np.testing.assert_allclose(total, 1, atol=3e-7)


@pytest.mark.parametrize("blend", ["cosine", "bump"])
def test_weights_of_wide_overlaps_are_numbers(blend):
    grid = TileGrid(tile_vx=(1, 1, 2048), overlap_vx=(0, 0, 1024), blend=blend)
    first, middle, last = (grid.weights(2, index, 3) for index in range(3))
    assert first[0] == last[-1] == 1
    np.testing.assert_allclose(first[1024:] + middle[:1024], 1, atol=3e-7)
    np.testing.assert_allclose(middle[1024:] + last[:1024], 1, atol=3e-7)


def test_tiles_keep_the_phase_of_the_stride(volume):
    seen = []

    def model(tiles):
        seen.append(tiles)
        return tiles[:, None].astype(np.float32)

    grid = TileGrid(tile_vx=(1, 16, 16), overlap_vx=(0, 8, 8), stride_vx=(1, 4, 4))
    stitched(volume, model, grid, (3, 20, 20))
    mirrored = np.pad(volume.array, ((0, 0), (0, 16), (0, 16)), mode="reflect")
    expected = {
        mirrored[z, y : y + 16, x : x + 16].tobytes()
        for z, y, x in itertools.product(range(9), range(0, 48, 8), range(0, 56, 8))
    }
    assert {tile.tobytes() for batch in seen for tile in batch} == expected
    with pytest.raises(BoxError, match="12 voxels apart on y; wanted a multiple of the .* 8"):
        TileGrid(tile_vx=(1, 16, 16), overlap_vx=(0, 4, 4), stride_vx=(1, 8, 8))


def test_models_that_give_the_wrong_thing_are_refused(volume):
    grid = TileGrid(tile_vx=(1, 16, 16), halo_vx=(0, 2, 2))
    box = Box((0, 0, 0), (1, 16, 16))
    with pytest.raises(ValueError, match=r"the model gave \(1, 1, 18, 18\)"):
        predict_block(volume, lambda tiles: tiles[..., 1:-1, 1:-1], grid, box)
    with pytest.raises(FloatingPointError, match="not finite"):
        predict_block(volume, lambda tiles: tiles[:, None] * np.float32(np.nan), grid, box)
    holed = open_volume(np.full((1, 16, 16), np.nan, np.float32))
    with pytest.raises(FloatingPointError, match="voxels that are NaN"):
        predict_block(holed, lambda tiles: tiles[:, None, :, 2:-2, 2:-2], grid, box)
    for wrong in ({"tile_vx": (0, 1, 1)}, {"overlap_vx": (0, 0, 4)}, {"batch": 0}):
        with pytest.raises(BoxError):
            TileGrid(**{"tile_vx": (4, 4, 4), **wrong})


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_mirrored_reading_is_numpys_reflection(data):
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    before = data.draw(st.tuples(*[st.integers(0, 20)] * 3))
    after = data.draw(st.tuples(*[st.integers(0, 20)] * 3))
    array = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    expected = np.pad(array, list(zip(before, after, strict=True)), mode="reflect")
    box = Box(tuple(-b for b in before), expected.shape)
    np.testing.assert_array_equal(read_mirrored(open_volume(array), box), expected)


def test_memory_is_what_was_said():
    """The measured peak of a block, and the estimate is not a wild one."""
    import tracemalloc

    shape = (32, 400, 400)
    volume = open_volume(np.zeros(shape, np.uint8))
    for grid, block_vx in (
        (TileGrid(tile_vx=(1, 128, 128), halo_vx=(2, 16, 16), batch=8), (16, 256, 256)),
        (TileGrid(tile_vx=(32, 64, 64), overlap_vx=(8, 16, 16), blend="bump"), (32, 128, 128)),
    ):
        figures = block_figures(shape, grid, block_vx, channels=3, stored_bytes=3)
        out = np.zeros((grid.batch, 3, *grid.input_vx), np.float32)
        tracemalloc.start()
        block = predict_block(volume, lambda tiles, out=out: out, grid, Box((0, 100, 90), block_vx))
        as_uint8(block)
        peak = tracemalloc.get_traced_memory()[1] + out.nbytes
        tracemalloc.stop()
        stated = figures.peak_bytes - OVERHEAD_BYTES
        assert stated / 3 < peak < stated


def test_the_chosen_block_computes_little_twice_within_the_budget():
    shape, file_vx = (512, 2048, 2048), (32, 128, 128)
    grid = TileGrid(tile_vx=(1, 256, 256), overlap_vx=(0, 64, 64), batch=8)
    chosen = [
        choose_block(shape, grid, file_vx, budget_bytes=mib * 2**20, channels=3)
        for mib in (64, 256, 1024)
    ]
    for figures, mib in zip(chosen, (64, 256, 1024), strict=True):
        assert figures.peak_bytes <= mib * 2**20
        assert not any(b % f for b, f in zip(figures.block_vx, file_vx, strict=True))
    costs = [figures.computed for figures in chosen]
    assert costs[0] > costs[1] > costs[2] >= (256 / 192) ** 2 and costs[2] < 2.2
    many = choose_block(shape, grid, file_vx, budget_bytes=2**30, channels=3, at_least=100)
    assert np.prod([-(-n // b) for n, b in zip(shape, many.block_vx, strict=True)]) >= 100
    runs = []
    small = open_volume(np.zeros((20, 70, 90), np.uint8))
    grid = TileGrid(tile_vx=(1, 32, 32), overlap_vx=(0, 8, 8), batch=4)
    figures = block_figures(small.shape, grid, (16, 32, 64), channels=1)
    stitched(small, lambda tiles: runs.append(tiles.size) or tiles[:, None], grid, (16, 32, 64))
    assert sum(runs) / small.nbytes == pytest.approx(figures.computed)
    with pytest.raises(MemoryError, match="more than the budget of 1 MiB"):
        choose_block(shape, grid, file_vx, budget_bytes=2**20, channels=3)


def test_bytes_are_rounded_probabilities():
    values = np.array([[[-1.0, 0, 0.25, 1, 2]]], np.float32)
    assert as_uint8(values).tolist() == [[[0, 0, 64, 255, 255]]]
    probabilities = np.random.default_rng(0).random((3, 4, 5, 6))
    np.testing.assert_array_equal(as_classes(probabilities), probabilities.argmax(0))
    with pytest.raises(ValueError, match="no more than 256"):
        as_classes(np.zeros((257, 1, 1, 1)))

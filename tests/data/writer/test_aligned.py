"""Several inputs at their own scales: what one run over the whole of them gives, whatever the blocks."""

import numpy as np
import pytest
from em_data import Box, TileGrid, VolumeFormatError, binned, open_volume, predict_block, tiles
from em_data.writer.aligned import align
from hypothesis import given, settings
from hypothesis import strategies as st

SHAPE, SIZE = (5, 48, 62), (40.0, 8.0, 8.0)


def beside(array, size_nm, origin_nm=None, source_size=SIZE):
    """A volume whose first edge is that of a volume of `source_size` voxels at 0."""
    if origin_nm is None:
        origin_nm = [(n - s) / 2 for n, s in zip(size_nm, source_size, strict=True)]
    return open_volume(array, voxel_size_nm=size_nm, origin_nm=origin_nm)


@pytest.fixture(scope="module")
def fine():
    voxels = np.random.default_rng(0).integers(0, 200, SHAPE, np.uint8)
    return open_volume(voxels, voxel_size_nm=SIZE)


def stitched(volume, model, grid, others, block_vx):
    whole = None
    for box in tiles(volume.shape, block_vx):
        block = predict_block(volume, model, grid, box, beside=others)
        if whole is None:
            whole = np.full((len(block), *volume.shape), np.nan, np.float32)
        whole[(slice(None), *box.slices)] = block
    return whole


def nearest_to_mirrored(volume, other, low, high):
    """The voxels of `other` from `low` to `high` of `volume`'s voxels, one axis at a time, by search."""
    found = other.array
    for axis in range(3):
        (size, first, n), (own, start) = (
            (volume.voxel_size_nm[axis], volume.origin_nm[axis], volume.shape[axis]),
            (other.voxel_size_nm[axis], other.origin_nm[axis]),
        )
        centres = start + own * np.arange(other.shape[axis])
        edge = first + (low[axis] - 0.5) * size
        count = round((high[axis] - low[axis]) * size / own)
        places = []
        for at in edge + own * (np.arange(count) + 0.5):
            ahead = 1e-6  # what lies on the border belongs to the voxel behind it
            at += ahead
            while not first - size / 2 <= at < first + (n - 0.5) * size:
                at = 2 * (first if at < first else first + (n - 1) * size) - at
                ahead = -ahead
            at -= ahead
            places.append(int(np.abs(centres - at + 1e-7).argmin()))
        found = found.take(places, axis + found.ndim - 3)
    return found


def looks_around(raw, coarse, ratio=4, halo=4):
    """The grey value of a voxel and the sum of the 3 × 3 coarse ones around it, two channels."""
    total = sum(
        coarse[..., 1 + y : coarse.shape[-2] - 1 + y, 1 + x : coarse.shape[-1] - 1 + x].astype(int)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    )
    total = total.repeat(ratio, -1).repeat(ratio, -2)
    inner = raw[..., halo:-halo, halo:-halo]
    return np.stack([inner, inner + 1000 * total], 1).astype(np.float32)


@pytest.mark.parametrize("block_vx", [SHAPE, (2, 16, 32), (1, 48, 7), (3, 13, 62)])
@pytest.mark.parametrize(("tile_vx", "batch"), [((1, 16, 16), 2), ((2, 32, 8), 1)])
def test_a_coarse_map_beside_the_volume(fine, tile_vx, batch, block_vx):
    """62 voxels are 15.5 of the coarse map: its last voxel is left out, as pyramids do."""
    coarse = binned(fine, (1, 4, 4)).held_in_memory()
    assert coarse.shape == (5, 12, 15) and coarse.origin_nm == (0, 12, 12)
    grid = TileGrid(tile_vx=tile_vx, halo_vx=(0, 4, 4), batch=batch)
    raw = np.pad(fine.array, ((0, 0), (4, 4), (4, 6)), mode="reflect")
    around = nearest_to_mirrored(fine, coarse, (0, -4, -4), (5, 52, 68))
    want = looks_around(raw[None], around[None])[0, ..., :62]
    np.testing.assert_array_equal(stitched(fine, looks_around, grid, [coarse], block_vx), want)


def test_any_number_of_inputs_of_any_scale(fine):
    """Coarser in z, finer, two thirds as fine, and with channels: each tile is cut at its own scale."""
    rng = np.random.default_rng(1)
    inputs = [
        beside(rng.integers(0, 99, (3, 48, 62), np.uint8), (80, 8, 8)),
        beside(rng.integers(0, 99, (5, 96, 124), np.uint8), (40, 4, 4)),
        beside(rng.integers(0, 99, (5, 32, 42), np.uint8), (40, 12, 12)),
        beside(rng.integers(0, 99, (6, 48, 62), np.uint8), SIZE, (-40, 0, 0)),
    ]
    seen = {}

    def model(raw, *others):
        for number, tile in enumerate(raw):
            seen[tile.tobytes()] = [one[number] for one in others]
        return raw[:, None].astype(np.float32)

    grid = TileGrid(tile_vx=(2, 18, 18), halo_vx=(2, 6, 6))
    stitched(fine, model, grid, inputs, (4, 20, 30))
    raw = np.pad(fine.array, ((2, 9), (6, 24), (6, 24)), mode="reflect")
    for z, y, x in np.ndindex(3, 3, 4):
        low = np.array([2 * z - 2, 18 * y - 6, 18 * x - 6])
        high = low + grid.input_vx
        at = tuple(
            slice(o + h, o + h + n) for o, h, n in zip(low, (2, 6, 6), grid.input_vx, strict=True)
        )
        for own, other in zip(seen[raw[at].tobytes()], inputs, strict=True):
            np.testing.assert_array_equal(own, nearest_to_mirrored(fine, other, low, high))
    assert own.shape == (6, 30, 30)


def test_channels_come_along(fine, tmp_path):
    from em_data import new_store

    names, data = ("a", "b"), np.random.default_rng(2).random((2, 5, 12, 15), np.float32)
    with new_store(tmp_path / "map.zarr") as store:
        size, origin = (40.0, 32.0, 32.0), (0.0, 12.0, 12.0)
        image = store.add_image(data.shape[1:], np.float32, size, origin_nm=origin, channels=names)
        image.write(Box((0, 0, 0), data.shape[1:]), data)

    def model(raw, coarse):
        assert coarse.shape == (len(raw), 2, 1, 6, 6)
        up = coarse.repeat(4, -1).repeat(4, -2)
        return up[..., 4:-4, 4:-4]

    grid = TileGrid(tile_vx=(1, 16, 16), halo_vx=(0, 4, 4))
    found = stitched(fine, model, grid, [open_volume(tmp_path / "map.zarr")], (2, 20, 40))
    up = data.repeat(4, -1).repeat(4, -2)
    np.testing.assert_array_equal(found[..., :60], up)


@pytest.mark.parametrize("blend", ["cosine", "bump"])
def test_bytes_do_not_depend_on_blocks(fine, blend):
    coarse = binned(fine, (1, 4, 4)).held_in_memory()

    def model(raw, coarse):
        up = coarse.repeat(4, -1).repeat(4, -2)
        return (raw / 7 + up * raw.mean(dtype=np.float32) / 3)[:, None].astype(np.float32)

    grid = TileGrid(tile_vx=(3, 24, 20), overlap_vx=(1, 8, 12), blend=blend, batch=2)
    first, *others = (
        stitched(fine, model, grid, [coarse], block_vx)
        for block_vx in (SHAPE, (2, 48, 16), (4, 17, 62))
    )
    assert np.isfinite(first).all()
    assert all(other.tobytes() == first.tobytes() for other in others)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_places_are_the_nearest_by_search(data):
    p, q = data.draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 2), (3, 2), (2, 3)]))
    n = (number := data.draw(st.integers(2, 9))) * p
    ahead = data.draw(st.integers(0, 3))
    own = 8.0 * p / q
    count = ahead + n * q // p
    volume = open_volume(np.zeros((1, 1, n), np.uint8), voxel_size_nm=(8, 8, 8))
    other = open_volume(
        np.arange(count, dtype=np.uint16).reshape(1, 1, count),
        voxel_size_nm=(8, 8, own),
        origin_nm=(0, 0, (own - 8) / 2 - ahead * own),
    )
    steps = data.draw(st.integers(1, number - 1))
    halo = data.draw(st.integers(0, number - 1 - steps))  # mirrored once at each border
    grid = TileGrid(tile_vx=(1, 1, p * steps), halo_vx=(0, 0, p * halo))
    low = grid.source(volume.shape, Box((0, 0, 0), volume.shape))
    found = align(volume, other, grid).places(low)[2]
    stop = low.origin_vx[2] + low.size_vx[2]
    want = nearest_to_mirrored(volume, other, (0, 0, low.origin_vx[2]), (1, 1, stop))
    np.testing.assert_array_equal(found, want[0, 0])


@pytest.mark.parametrize(
    ("size_nm", "origin_nm", "shape", "message"),
    [
        ((40, 8, 11.3), None, (5, 48, 44), "11.3 nm on x, .* no ratio of whole numbers up to 16"),
        ((40, 32, 32), (0, 0, 0), (5, 12, 16), "begins at 0.38 voxels .* on y, .* off its grid"),
        ((40, 32, 32), (0, 4, 12), (5, 12, 16), r"tile .* begins at -0\.75 voxels .* inside of a"),
        ((40, 32, 32), None, (5, 12, 14), r"ends before .*: .* 0 to 15\.5 are wanted on x"),
        ((40, 16, 16), (0, 36, 4), (5, 24, 31), "ends before .* -2 to 22 are wanted on y"),
        ((40, 128, 32), None, (5, 3, 16), "0.0625|has 1/16 voxels .* on y, .* a multiple of 16"),
    ],
)
def test_what_does_not_fit_is_refused(fine, size_nm, origin_nm, shape, message):
    grid = TileGrid(tile_vx=(1, 16, 16), halo_vx=(0, 4, 4))
    other = beside(np.zeros(shape, np.uint8), size_nm, origin_nm)
    with pytest.raises(VolumeFormatError, match=message):
        predict_block(fine, looks_around, grid, Box((0, 0, 0), (1, 8, 8)), beside=[other])


def test_unknown_sizes_fit_where_the_shapes_are_the_same(fine):
    grid = TileGrid(tile_vx=(1, 16, 16))
    bare = open_volume(fine.array)

    def model(raw, other):
        return (raw[:, None] - other[:, None].astype(np.float32)) + 1

    found = stitched(bare, model, grid, [open_volume(fine.array)], SHAPE)
    assert (found == 1).all()
    with pytest.raises(VolumeFormatError, match=r"does not say its voxel size.*\?voxel_nm=Z,Y,X"):
        align(fine, bare, grid)

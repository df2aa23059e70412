"""Boxes, splits and cubes; a precomputed volume on a server."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from em_data import Box, CubeConfig, SplitConfig, Volume, open_volume
from em_data.geometry import end_of
from em_train.engine.reading import open_volumes
from em_train.mae.data import (
    DataConfig,
    boxes_of,
    held_out,
    make_loader,
    split_data,
    token_pitch,
    voxels_of,
)

CUBE = CubeConfig(size_vx=(8, 16, 16))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def precomputed(tmp_path):
    """A volume of bytes in Neuroglancer's format, on a server on loopback: (address, voxels)."""
    tensorstore = pytest.importorskip("tensorstore")
    voxels = np.random.default_rng(0).integers(0, 256, (40, 48, 64), np.uint8)
    array = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{tmp_path}/volume/",
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": [64, 48, 40],
                "resolution": [8, 8, 8],
                "chunk_size": [16, 16, 8],
                "encoding": "raw",
            },
        },
        create=True,
    ).result()
    array[...] = voxels.transpose(2, 1, 0)[..., None]
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"precomputed://http://127.0.0.1:{server.server_port}/volume", voxels
        server.shutdown()
        thread.join()


def inside(box, boxes):
    return any(
        all(o >= p for o, p in zip(box.origin_vx, other.origin_vx, strict=True))
        and all(o <= p for o, p in zip(end_of(box), end_of(other), strict=True))
        for other in boxes
    )


@pytest.mark.parametrize("memory_gib", [1.0, 1e-4])
@pytest.mark.parametrize(
    "where",
    [
        {"boxes": ((0, 0, 0, 24, 48, 32), (16, 8, 32, 24, 32, 32))},
        {"grid": (2, 1, 2), "box_vx": (20, 48, 24)},
    ],
)
def test_cubes_of_boxes_of_a_volume_on_a_server(precomputed, where, memory_gib):
    address, voxels = precomputed
    config = DataConfig(
        volumes=(address,),
        cube=CUBE,
        batch_size=2,
        memory_gib=memory_gib,
        checked_cubes=4,
        split=SplitConfig(last_z=0.3),
        **where,
    )
    volumes = open_volumes(config)
    split = split_data(volumes, config)
    loader = make_loader(volumes, split, config, seed=0)
    assert (loader.sampler.__class__.__name__ == "PlaceSampler") == (memory_gib == 1.0)
    boxes = boxes_of(volumes[0].shape, config)
    held = split.held_out[0][0]
    seen = 0
    for batch in loader.batches(0, 6):
        for raw, origin in zip(batch.raw, batch.origin_nm, strict=True):
            at = tuple(round(float(o) / 8) for o in origin)
            box = Box(at, CUBE.size_vx)
            assert inside(box, boxes) and end_of(box)[0] <= held.origin_vx[0]
            np.testing.assert_array_equal(raw.numpy(), voxels[box.slices])
            seen += 1
    assert seen == 12
    for batch in held_out(loader, split, config, seed=0):
        for origin in batch.origin_nm:
            at = tuple(round(float(o) / 8) for o in origin)
            assert inside(Box(at, CUBE.size_vx), boxes)
            assert at[0] + 4 >= held.origin_vx[0]


def test_held_out_cubes_do_not_depend_on_the_number_of_ranks_or_the_step():
    config = DataConfig(
        volumes=("synthetic:shape=30x64x64,seed=1", "synthetic:shape=24x64x64,seed=2"),
        cube=CUBE,
        split_of=(1,),
        split=SplitConfig(last_z=0.4),
        checked_cubes=4,
        batch_size=2,
    )
    volumes = open_volumes(config)
    split = split_data(volumes, config)
    assert split.held_out[0] == () and split.held_out[1][0].origin_vx[0] == 14
    assert split.training[0].inside[0].size_vx == (30, 64, 64)
    loader = make_loader(volumes, split, config, seed=0)
    first, again = (held_out(loader, split, config, seed=0) for _ in range(2))
    assert len(first) == 2
    assert all(torch.equal(a.raw, b.raw) for a, b in zip(first, again, strict=True))


def test_bytes_stay_bytes_unless_contrast_is_equalised():
    config = DataConfig(volumes=("synthetic:shape=24x64x64,seed=1",), cube=CUBE, batch_size=2)
    volumes = open_volumes(config)
    loader = make_loader(volumes, split_data(volumes, config), config, seed=0)
    batch = next(iter(loader.batches(0, 1)))
    voxels = voxels_of(batch, config)
    assert voxels.stored.dtype == torch.uint8 and voxels.stored.shape == (2, 1, 8, 16, 16)
    values = voxels.stored[:, 0] * voxels.scale.view(-1, 1, 1, 1) + voxels.shift.view(-1, 1, 1, 1)
    torch.testing.assert_close(values.clamp(0, 1), batch.image())
    equal = voxels_of(batch, DataConfig(clahe=True, cube=CUBE))
    assert equal.stored.dtype == torch.float32 and equal.scale is None
    assert not torch.equal(equal.stored[:, 0], batch.image())
    assert token_pitch(volumes, (2, 8, 8)) == 64


def test_grids_and_refusals():
    boxes = boxes_of((100, 50, 50), DataConfig(grid=(3, 1, 2), box_vx=(20, 30, 10)))
    assert [box.origin_vx for box in boxes[:3]] == [(0, 10, 0), (0, 10, 40), (40, 10, 0)]
    with pytest.raises(ValueError, match="give one"):
        boxes_of((9, 9, 9), DataConfig(grid=(1, 1, 1), boxes=((0, 0, 0, 9, 9, 9),)))
    config = DataConfig(volumes=("synthetic:shape=24x64x64,seed=1",), cube=CUBE, split_of=(3,))
    volumes = [Volume(np.zeros((24, 64, 64), np.uint8), "a", "numpy")]
    with pytest.raises(ValueError, match=r"split_of is \(3,\) for 1 volumes"):
        split_data(volumes, config)
    nothing = DataConfig(cube=CUBE, split=SplitConfig(last_z=0.0))
    split = split_data(volumes, nothing)
    loader = make_loader(volumes, split, nothing, seed=0)
    with pytest.raises(ValueError, match="nothing is held out"):
        held_out(loader, split, nothing, seed=0)


@pytest.mark.parametrize("depth", [160, 192, 700])
def test_as_much_is_held_out_as_a_cube_needs(depth):
    volume = open_volume(np.zeros((depth, 64, 64), np.uint8))
    split = split_data([volume], DataConfig())
    (held,) = split.held_out[0]
    assert held.size_vx[0] == max(32, depth // 10)
    for region in (split.training[0], split.validation[0]):
        assert any(min(box.size_vx) >= 64 for box in region.inside)

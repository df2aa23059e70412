import hashlib
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from em_data import (
    BlockPlan,
    BlockSampler,
    Box,
    CubeConfig,
    Key,
    NotFiniteError,
    PlaceSampler,
    StackConfig,
    VolumeFormatError,
    VolumeReadError,
    grey_range,
    open_volume,
    place_labels,
)
from em_data.loader import Loader
from em_data.loader.loader import ATTEMPTS, same_share


@pytest.fixture
def volumes():
    draw = np.random.default_rng(0).integers
    return [
        open_volume(draw(0, 255, shape, np.uint8), voxel_size_nm=(40, 4, 4), origin_nm=(0, 100, 0))
        for shape in ((12, 60, 60), (9, 50, 70))
    ]


def loader(volumes, **changes):
    sampler = PlaceSampler([v.shape for v in volumes], StackConfig(size_vx=21), seed=1)
    settings = {"batch_size": 4, "samples_per_epoch": 10, "threads": 2} | changes
    return Loader(volumes, sampler, **settings)


def test_a_batch_holds_the_voxels_of_its_samples(volumes):
    reader = loader(volumes)
    batches = list(reader.batches(0, 5))
    assert len(batches) == 5
    for batch in batches:
        assert batch.raw.shape == (4, 5, 21, 21) and batch.raw.dtype == torch.uint8
        for raw, key, origin in zip(batch.raw, batch.keys, batch.origin_nm, strict=True):
            sample = reader.sampler(key)
            volume = volumes[sample.volume]
            np.testing.assert_array_equal(raw.numpy(), volume.read(sample.box))
            z, y, x = sample.box.origin_vx
            assert origin.tolist() == [40 * z, 100 + 4 * y, 4 * x]
    image = batches[0].image()
    for unit, raw, key in zip(image, batches[0].raw, batches[0].keys, strict=True):
        grey = grey_range(volumes[reader.sampler(key).volume])
        torch.testing.assert_close(unit, torch.from_numpy(grey.unit(raw.numpy())))


def test_threads_and_resuming_do_not_change_batches(volumes):
    whole = [batch.raw for batch in loader(volumes, threads=1).batches(0, 8)]
    resumed = [batch.raw for batch in loader(volumes, threads=4, in_flight=1).batches(5, 8)]
    for a, b in zip(whole[5:], resumed, strict=True):
        assert torch.equal(a, b)


def test_ranks_share_out_the_global_batch(volumes):
    whole = loader(volumes, batch_size=4)
    ranks = [loader(volumes, batch_size=2, rank=r, world=2) for r in (0, 1)]
    for step in range(7):
        assert ranks[0].keys(step) + ranks[1].keys(step) == whole.keys(step)
    assert whole.keys(2) == [Key(0, 8), Key(0, 9), Key(1, 0), Key(1, 1)]


def test_gaps_between_slices_are_left_out(volumes):
    config = StackConfig(size_vx=21, offsets_z=(-3, 0, 1))
    sampler = PlaceSampler([volumes[0].shape], config, seed=0)
    reader = Loader(volumes[:1], sampler, batch_size=1, samples_per_epoch=10)
    (batch,) = reader.batches(0, 1)
    sample = sampler(batch.keys[0])
    z, y, x = sample.box.origin_vx
    for plane, offset in zip(batch.raw[0], (0, 3, 4), strict=True):
        expected = volumes[0][z + offset : z + offset + 1, y : y + 21, x : x + 21][0]
        np.testing.assert_array_equal(plane.numpy(), expected)


PLAN = BlockPlan(chunks=(1, 2, 1), slots=4, positions=3, crops=5)


def block_loader(volumes, slots=4, **changes):
    sampler = BlockSampler(
        [v.shape for v in volumes],
        [(4, 16, 16)] * len(volumes),
        StackConfig(size_vx=21),
        PLAN,
        seed=1,
        samples_per_epoch=30,
    )
    settings = {"batch_size": 4, "samples_per_epoch": 30} | changes
    return Loader(volumes, sampler, **settings)


def test_blocks_give_the_voxels_of_their_samples(volumes):
    reader = block_loader(volumes)
    for batch in reader.batches(0, 60):
        for raw, key in zip(batch.raw, batch.keys, strict=True):
            sample = reader.sampler(key)
            np.testing.assert_array_equal(raw.numpy(), volumes[sample.volume].read(sample.box))


def test_blocks_are_read_once(volumes, monkeypatch):
    reads = []
    from em_data.loader import loader

    monkeypatch.setattr(loader, "grey_range", lambda _: grey_range(volumes[0]))

    class Counting:
        shape, dtype = volumes[0].shape, np.dtype(np.uint8)

        def __getitem__(self, index):
            reads.append(index)
            return volumes[0].array[index]

    from em_data import Volume

    reader = block_loader([Volume(Counting(), "counted", "test")], in_flight=2)
    used = {reader.sampler.turn(key).block_id for step in range(100) for key in reader.keys(step)}
    for _ in reader.batches(0, 100):
        pass
    assert len(reads) == len(used)
    # 400 crops from blocks of 5: the blocks of the first and last rounds serve fewer.
    assert 80 <= len(used) <= 80 + 2 * PLAN.slots * PLAN.positions


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("threads", [0, 1, 4])
def test_blocks_do_not_depend_on_threads_ranks_or_resuming(volumes, world, threads):
    whole = [batch.raw for batch in block_loader(volumes).batches(0, 40)]
    settings = {"world": world, "batch_size": 4 // world, "threads": threads, "in_flight": threads}
    for start in (0, 17):
        ranks = [block_loader(volumes, rank=r, **settings).batches(start, 40) for r in range(world)]
        for step, parts in enumerate(zip(*ranks, strict=True), start):
            assert torch.equal(torch.cat([part.raw for part in parts]), whole[step])


def test_no_more_blocks_are_held_than_planned(volumes, monkeypatch):
    import weakref

    alive, most = 0, 0

    class Tracked(np.ndarray):
        """A block whose life can be followed."""

    class Tracking:
        shape, dtype = volumes[0].shape, np.dtype(np.uint8)

        def __getitem__(self, index):
            nonlocal alive, most
            block = volumes[0].array[index].copy().view(Tracked)
            alive += 1
            most = max(most, alive)
            weakref.finalize(block, let_go)
            return block

    def let_go():
        nonlocal alive
        alive -= 1

    from em_data import Volume
    from em_data.loader import loader

    monkeypatch.setattr(Volume, "read", lambda self, box, out=None: self.array[box.slices])
    monkeypatch.setattr(loader, "grey_range", lambda _: grey_range(volumes[0]))
    reader = block_loader([Volume(Tracking(), "tracked", "test")], in_flight=2, threads=1)
    for _ in reader.batches(0, 150):
        pass
    assert most <= PLAN.slots * PLAN.positions + 2 + PLAN.slots
    assert most >= PLAN.slots * PLAN.positions


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_other_types_come_as_stored_and_in_their_own_range(dtype):
    voxels = np.random.default_rng(0).uniform(0, 4095, (12, 60, 60)).astype(dtype)
    (batch,) = loader([open_volume(voxels)]).batches(0, 1)
    assert batch.raw.numpy().dtype == dtype
    image = batch.image()
    assert 0.4 < image.mean() < 0.6 and image.std() > 0.25


def test_a_plan_for_another_batch_is_refused(volumes):
    with pytest.raises(ValueError, match="plan for 6"):
        block_loader(volumes, batch_size=6)


def test_a_failed_read_reaches_the_reader_of_batches(volumes):
    class Broken:
        shape, dtype = (12, 60, 60), np.dtype(np.uint8)

        def __getitem__(self, index):
            raise OSError("disk gone")

    from em_data import Volume

    reader = loader([Volume(Broken(), "broken", "test")])
    with pytest.raises(VolumeReadError, match="disk gone"):
        next(reader.batches(0, 3))


def test_mixed_or_odd_types_are_refused(volumes):
    odd = open_volume(np.zeros((12, 60, 60), np.float64))
    with pytest.raises(VolumeFormatError, match="float64"):
        loader([odd])
    with pytest.raises(
        VolumeFormatError, match=r"holds uint16, .*holds uint8|holds uint8, .*holds uint16"
    ):
        loader([volumes[0], open_volume(np.zeros((12, 60, 60), np.uint16))])


@pytest.fixture
def labels(volumes):
    """Two channels of the first volume, beginning at its slice 3; one of the second is shorter."""
    rng, found = np.random.default_rng(1), []
    for volume, depth in zip(volumes, (9, 4), strict=True):
        z, y, x = volume.shape
        cells = rng.integers(0, 300, (depth, y, x)).astype(np.uint16)
        spots = rng.integers(0, 2, (z, y, x - 20)).astype(np.uint8)
        placed = {"cells": (cells, (120, 100, 0)), "spots": (spots, (0, 100, 40))}
        found.append(
            place_labels(
                volume,
                {
                    name: open_volume(data, voxel_size_nm=(40, 4, 4), origin_nm=origin)
                    for name, (data, origin) in placed.items()
                },
            )
        )
    return found


def made(kind, volumes, config, **changes):
    """A loader of independent places out of volumes in memory or read, or of blocks."""
    shapes = [volume.shape for volume in volumes]
    if kind == "block":
        chunks = [(4, 16, 16)] * len(shapes)
        sampler = BlockSampler(shapes, chunks, config, PLAN, seed=1, samples_per_epoch=30)
    else:
        sampler = PlaceSampler(shapes, config, seed=1)
    if kind != "held":
        volumes = [replace(volume, array=Read(volume.array)) for volume in volumes]
    settings = {"batch_size": 4, "samples_per_epoch": 30} | changes
    return Loader(volumes, sampler, **settings)


class Read:
    """An array that has to be read."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return self.array[index].copy()


KINDS = ("held", "exact", "block")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [StackConfig(size_vx=15), CubeConfig(size_vx=(3, 10, 12))])
def test_labels_lie_under_their_voxels(volumes, labels, kind, config):
    reader = made(kind, volumes, config, labels=labels)
    some = []
    for batch in reader.batches(0, 30):
        depth = 1 if isinstance(config, StackConfig) else 3
        assert batch.labels.shape == batch.valid.shape == (4, 2, depth, *config.crop_vx[1:])
        assert batch.labels.dtype == torch.uint16 and batch.valid.dtype == torch.bool
        for values, valid, key in zip(batch.labels, batch.valid, batch.keys, strict=True):
            sample = reader.sampler(key)
            z, y, x = sample.box.origin_vx
            box = Box((z + (2 if depth == 1 else 0), y, x), (depth, *config.crop_vx[1:]))
            own = labels[sample.volume]
            np.testing.assert_array_equal(values.numpy(), own.read(box))
            np.testing.assert_array_equal(valid.numpy(), own.valid(box))
            assert not values.numpy()[~valid.numpy()].any()
            some.append(valid.float().mean().item())
    assert min(some) < 0.5 and max(some) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_batches_with_labels_are_the_same_for_any_threads_and_ranks(volumes, labels, kind):
    def hashes(start, world, threads):
        each = [
            made(
                *(kind, volumes, StackConfig(size_vx=15)),
                **{"labels": labels, "threads": threads, "empty_share": 0.9},
                **{"rank": rank, "world": world, "batch_size": 4 // world},
            ).batches(start, 25)
            for rank in range(world)
        ]
        found = []
        for parts in zip(*each, strict=True):
            names = ("raw", "scale", "shift", "origin_nm", "labels", "valid")
            whole = [torch.cat([getattr(part, name) for part in parts]) for name in names]
            found.append(hashlib.sha256(b"".join(t.numpy().tobytes() for t in whole)).hexdigest())
        return found

    expected = hashes(0, 1, 1)
    assert len(set(expected)) == 25
    for threads in (0, 1, 4):
        for world in (1, 2):
            assert hashes(0, world, threads) == expected
            assert hashes(11, world, threads) == expected[11:]


@pytest.mark.parametrize("kind", KINDS)
def test_empty_places_are_drawn_again(kind):
    voxels = np.random.default_rng(0).integers(1, 255, (16, 96, 96), np.uint8)
    voxels[:, 40:] = 0  # padding
    voxels[:, :40, 70:] = 255
    voxels[12:, :, :30] = 99
    config = CubeConfig(size_vx=(3, 10, 10))
    settings = {"samples_per_epoch": 10**6, "threads": 1}
    volume = open_volume(voxels, voxel_size_nm=(1, 1, 1))  # so that origins are voxels
    plain = made(kind, [volume], config, **settings)
    kept = sum(same_share(raw.numpy()) > 0.8 for b in plain.batches(0, 200) for raw in b.raw)
    assert kept > 400 and plain.counts.redrawn == 0
    reader = made(kind, [volume], config, empty_share=0.8, **settings)
    origins = []
    for batch in reader.batches(0, 600):
        for raw, origin in zip(batch.raw, batch.origin_nm, strict=True):
            if same_share(raw.numpy()) <= 0.8:
                origins.append(origin.int().tolist())
    counts = reader.counts
    assert counts.samples == 2400 and counts.redrawn > 500
    assert counts.empty == 2400 - len(origins) < 24  # what many attempts did not find
    # What is left is as likely as before, also beside the padding: compare with the allowed places.
    windows = np.lib.stride_tricks.sliding_window_view(voxels, (3, 10, 10))
    shares = [(windows == value).mean((3, 4, 5)) for value in (0, 99, 255)]
    allowed = np.max(shares, axis=0) <= 0.8
    found = np.array(origins)
    for axis in range(3):
        expected = allowed.sum(tuple({0, 1, 2} - {axis}))
        share = np.bincount(found[:, axis], minlength=len(expected)) / len(found)
        middle = (np.arange(len(expected)) * share).sum()
        wanted = (np.arange(len(expected)) * expected / expected.sum()).sum()
        assert middle == pytest.approx(wanted, abs=0.06 * len(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_is_empty_the_last_draw_is_used_and_counted(kind):
    flat = open_volume(np.full((12, 60, 60), 7, np.uint8))
    reader = made(kind, [flat], StackConfig(size_vx=15), empty_share=0.9)
    (batch,) = reader.batches(0, 1)
    assert (batch.raw == 7).all()
    assert reader.counts.empty == 4 and reader.counts.redrawn == 4 * (ATTEMPTS - 1)


class Stored:
    """Voxels that are read box by box, unlike those of an array in memory."""

    def __init__(self, voxels):
        self.voxels, self.shape, self.dtype = voxels, voxels.shape, voxels.dtype

    def __getitem__(self, index):
        return self.voxels[index]


@pytest.mark.parametrize("kind", ["held", "read", "blocks"])
def test_no_sample_holds_a_voxel_that_is_no_number(kind):
    voxels = np.random.default_rng(0).uniform(0, 9, (12, 60, 60)).astype(np.float32)
    voxels[4:, 30, 20:] = np.nan
    voxels[2, :20, 41] = np.inf
    volume = open_volume(voxels)
    if kind != "held":
        volume = replace(volume, array=Stored(voxels))
    make = block_loader if kind == "blocks" else loader
    masked = make([replace(volume, nan="mask")])
    batches = [batch.raw for batch in masked.batches(0, 40)]
    assert all(raw.isfinite().all() for raw in batches)
    assert masked.counts.masked > 9 and len({raw.numpy().tobytes() for raw in batches}) > 20
    again = make([replace(volume, nan="mask")], threads=0)
    assert all(map(torch.equal, batches, (batch.raw for batch in again.batches(0, 40))))
    for rule in ("keep", "refuse"):
        with pytest.raises(NotFiniteError, match=r"NaN or infinite, the first at \("):
            list(make([replace(volume, nan=rule)]).batches(0, 40))


@pytest.mark.parametrize("kind", ["read", "blocks"])
def test_a_volume_without_numbers_is_no_endless_search(kind):
    volume = replace(open_volume(np.full((12, 60, 60), np.nan, np.float32)), nan="mask")
    with pytest.raises(NotFiniteError, match="none of 1000 crops"):
        next((block_loader if kind == "blocks" else loader)([volume]).batches(0, 1))


def test_counts_say_what_was_decoded_and_served(volumes):
    reader = made("block", volumes, StackConfig(size_vx=15), threads=0)
    for _ in reader.batches(0, 3):
        pass
    assert reader.counts.samples == 12
    assert reader.counts.served_bytes == 12 * 5 * 15 * 15
    blocks = {reader.sampler.turn(key).block_id for step in range(3) for key in reader.keys(step)}
    boxes = [reader.sampler.block(block_id).box for block_id in blocks]
    assert reader.counts.decoded_bytes >= sum(np.prod(box.size_vx) for box in boxes)


def test_labels_that_do_not_fit_together_are_refused(volumes, labels):
    other = place_labels(volumes[1], {"cells": labels[1].layers[0].volume})
    with pytest.raises(ValueError, match="different labels: cells and cells, spots"):
        loader(volumes, labels=[labels[0], other])
    ones = [np.ones((4, 8, 8), dtype) for dtype in ("uint64", "int16")]
    pairs = [open_volume(one, voxel_size_nm=(8, 8, 8)) for one in ones]
    mixed = [place_labels(one, {"cells": one}) for one in pairs]
    with pytest.raises(ValueError, match="volume 1 .* hold uint64, .* volume 2 .* int16: no"):
        loader(volumes, labels=mixed)
    with pytest.raises(ValueError, match="1 labels for 2 volumes"):
        loader(volumes, labels=labels[:1])
    with pytest.raises(ValueError, match="empty_share is 1.5"):
        loader(volumes, empty_share=1.5)
    part = loader(volumes, labels=[labels[0], None])
    for batch in part.batches(0, 5):
        for valid, key in zip(batch.valid, batch.keys, strict=True):
            assert part.sampler(key).volume == 0 or not valid.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_batches_are_sent_ahead_to_the_device(volumes, labels, kind):
    settings = {"labels": labels, "threads": 2}
    here = made(kind, volumes, StackConfig(size_vx=15), **settings).batches(0, 50)
    there = made(kind, volumes, StackConfig(size_vx=15), device="cuda", **settings).batches(0, 50)
    for a, b in zip(here, there, strict=True):
        work = torch.randn(1024, 1024, device="cuda")
        for _ in range(10):
            work = work @ work / 32
        assert b.raw.is_cuda and b.raw.dtype == torch.uint8
        for name in ("raw", "scale", "shift", "labels", "valid"):
            torch.testing.assert_close(getattr(b, name).cpu(), getattr(a, name), rtol=0, atol=0)


def test_batches_of_a_named_device_are_there(volumes):
    (batch,) = loader(volumes, device="cpu").batches(0, 1)
    assert batch.raw.device.type == "cpu"


@pytest.mark.parametrize(("device", "waits"), [("mps", True), ("cpu", True), ("cuda:0", False)])
def test_only_copies_to_cuda_go_on_meanwhile(volumes, monkeypatch, device, waits):
    (batch,) = loader(volumes).batches(0, 1)
    sent = []

    def to(tensor, target, *, non_blocking=False):
        sent.append((target, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to(device)
    assert set(sent) == {(device, not waits)}


@pytest.mark.parametrize("kind", ["exact", "block"])
def test_volumes_on_servers_are_read_by_many_requests_at_once(
    http_server, write_image, voxels, kind
):
    data = voxels((32, 96, 96))
    write_image([data], chunks=(4, 16, 16), compressors=None)
    volume = open_volume(f"{http_server.url}/image.zarr")
    config = CubeConfig(size_vx=(4, 16, 16))
    if kind == "block":
        plan = BlockPlan(chunks=(1, 1, 1), slots=4, positions=3, crops=5, in_flight=12)
        sampler = BlockSampler(
            [volume.shape], [volume.chunk_vx], config, plan, seed=1, samples_per_epoch=30
        )
    else:
        sampler = PlaceSampler([volume.shape], config, seed=1)
    reader = Loader([volume], sampler, batch_size=4, samples_per_epoch=30)
    http_server.latency_s = 0.3  # a long way to the server, and time for a busy machine to ask
    for batch in reader.batches(0, 12):
        for raw, key in zip(batch.raw, batch.keys, strict=True):
            np.testing.assert_array_equal(raw.numpy(), data[sampler(key).box.slices])
    assert http_server.most_at_once >= 64


PEAK = """
    import re, sys
    from pathlib import Path
    import torch
    from em_data import CubeConfig, choose_sampler, open_volume
    from em_data.loader import Loader

    def peak():  # KiB, of this program alone: getrusage counts what its parent used before, too
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

    path, budget, *crop = sys.argv[1:]
    volume = open_volume(path)
    settings = {"seed": 0, "samples_per_epoch": 10**9, "budget_bytes": int(budget)}
    sampler = choose_sampler([volume], CubeConfig(size_vx=tuple(map(int, crop))), slots=8, **settings)
    reader = Loader([volume], sampler, batch_size=8, samples_per_epoch=10**9)
    torch.empty(8)
    before = peak()
    turnover = sampler.plan.positions * sampler.plan.crops
    for batch in reader.batches(0, 2 * turnover):
        pass
    print(volume.nbytes, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("crop", [(64, 64, 64), (5, 256, 256)])
def test_a_memory_budget_is_kept(tmp_path, script, crop):
    """256 MiB over what the libraries take, on 8 GiB that lie on the disk as a few chunks."""
    import zarr

    path = tmp_path / "large.zarr"
    array = zarr.create_array(path, shape=(2048,) * 3, chunks=(64,) * 3, dtype="u1")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 512), np.uint8)
    array[:64, :64, :512] = noise
    real = [path / f"c/0/0/{x}" for x in range(8)]
    for number, place in enumerate(np.ndindex(32, 32, 32)):
        chunk = path / "c" / "/".join(map(str, place))
        if chunk not in real:
            chunk.parent.mkdir(parents=True, exist_ok=True)
            os.link(real[number % 8], chunk)
    budget = 256 * 2**20
    size, more_kib = map(int, script(PEAK, path, budget, *crop).split())
    print(f"{more_kib / 1024:.0f} MiB")
    assert size == 8 * 2**30
    assert 0.6 * budget < more_kib * 1024 <= budget

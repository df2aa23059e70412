import numpy as np
import pytest
import torch
from em_data import (
    BlockPlan,
    BlockSampler,
    Key,
    PlaceSampler,
    StackConfig,
    VolumeFormatError,
    VolumeReadError,
    grey_range,
    open_volume,
)
from em_data.loader import Loader


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
    from em_data import loader

    monkeypatch.setattr(loader, "grey_range", lambda _: grey_range(volumes[0]))

    class Counting:
        shape, dtype = volumes[0].shape, np.dtype(np.uint8)

        def __getitem__(self, index):
            reads.append(index)
            return volumes[0].array[index]

    from em_data import Volume

    reader = block_loader([Volume(Counting(), "counted", "test")], in_flight=2)
    used = {reader.sampler.block_id(key) for step in range(100) for key in reader.keys(step)}
    for _ in reader.batches(0, 100):
        pass
    assert len(reads) == len(used)
    # 400 crops from blocks of 5: the blocks of the first and last rounds serve fewer.
    assert 80 <= len(used) <= 80 + 2 * PLAN.slots * PLAN.positions


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("threads", [1, 4])
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

    from em_data import Volume, loader

    monkeypatch.setattr(Volume, "read", lambda self, box: self.array[box.slices])
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
    with pytest.raises(VolumeFormatError, match="uint16, uint8"):
        loader([volumes[0], open_volume(np.zeros((12, 60, 60), np.uint16))])

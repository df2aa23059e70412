import numpy as np
import pytest
import torch
from em_data import Key, StackConfig, StackSampler, VolumeFormatError, VolumeReadError, open_volume
from em_data.loader import Loader


@pytest.fixture
def volumes():
    draw = np.random.default_rng(0).integers
    return [
        open_volume(draw(0, 255, shape, np.uint8), voxel_size_nm=(40, 4, 4), origin_nm=(0, 100, 0))
        for shape in ((12, 60, 60), (9, 50, 70))
    ]


def loader(volumes, **changes):
    sampler = StackSampler([v.shape for v in volumes], StackConfig(size_vx=21), seed=1)
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
            z, (y, x) = sample.slices_z[0], sample.window_yx
            assert origin.tolist() == [40 * z, 100 + 4 * y, 4 * x]
    image = batches[0].image()
    torch.testing.assert_close(image, batches[0].raw.float() / 255)


def test_threads_and_resuming_do_not_change_batches(volumes):
    whole = [batch.raw for batch in loader(volumes, threads=1).batches(0, 8)]
    resumed = [batch.raw for batch in loader(volumes, threads=4, ahead=1).batches(5, 8)]
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
    sampler = StackSampler([volumes[0].shape], config, seed=0)
    reader = Loader(volumes[:1], sampler, batch_size=1, samples_per_epoch=10)
    (batch,) = reader.batches(0, 1)
    sample = sampler(batch.keys[0])
    y, x = sample.window_yx
    for plane, z in zip(batch.raw[0], sample.slices_z, strict=True):
        expected = volumes[0][z : z + 1, y : y + 21, x : x + 21][0]
        np.testing.assert_array_equal(plane.numpy(), expected)


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
    odd = open_volume(np.zeros((12, 60, 60), np.float32))
    with pytest.raises(VolumeFormatError, match="float32"):
        loader([odd])
    with pytest.raises(VolumeFormatError, match="uint16, uint8"):
        loader([volumes[0], open_volume(np.zeros((12, 60, 60), np.uint16))])

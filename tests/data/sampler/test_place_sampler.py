import numpy as np
import pytest
from em_data import BoxError, CubeConfig, Key, PlaceSampler, StackConfig, random_at


def test_a_sample_depends_on_its_key_alone():
    sampler = PlaceSampler([(20, 100, 120)], StackConfig(size_vx=41), seed=3)
    there = [sampler(Key(1, n)) for n in range(20)]
    back = [sampler(Key(1, n)) for n in reversed(range(20))][::-1]
    assert there == back
    assert len({s.box for s in there}) > 15
    other = PlaceSampler([(20, 100, 120)], StackConfig(size_vx=41), seed=4)
    assert [other(Key(1, n)) for n in range(20)] != there


def test_streams_and_seeds_do_not_share_numbers():
    draws = {
        (seed, stream, epoch, number): tuple(
            random_at(seed, stream, Key(epoch, number)).integers(2**62, size=8)
        )
        for seed in (0, 1)
        for stream in (0, 1)
        for epoch in (0, 1)
        for number in (0, 1)
    }
    numbers = [n for draw in draws.values() for n in draw]
    assert len(set(numbers)) == len(numbers) == 128


def test_places_are_uniform_over_volumes_and_stay_inside():
    shapes = [(5, 20, 20), (9, 30, 20)]
    config = StackConfig(size_vx=11, offsets_z=(-2, 0, 1))
    sampler = PlaceSampler(shapes, config, seed=0)
    samples = [sampler(Key(0, n)) for n in range(6000)]
    for sample in samples:
        for origin, size, length in zip(*sample.box, shapes[sample.volume], strict=True):
            assert origin >= 0 and origin + size <= length
    # places: 2·10·10 in the first volume, 6·20·10 in the second
    counts = np.bincount([s.volume for s in samples], minlength=2) / len(samples)
    assert counts[0] == pytest.approx(200 / 1400, abs=0.02)
    rows = np.bincount([s.box.origin_vx[1] for s in samples if s.volume == 1], minlength=20)
    assert rows.min() > 0.7 * rows.mean() and rows.max() < 1.3 * rows.mean()


def test_a_stack_is_some_slices_of_its_box():
    config = StackConfig(size_vx=7, offsets_z=(-3, 0, 1))
    assert (config.crop_vx, config.planes) == ((5, 7, 7), (0, 3, 4))
    assert CubeConfig(size_vx=(2, 7, 7)).planes == (0, 1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BoxError, match=r"crop \(5, 64, 64\) exceeds volume \(4, 100, 100\) on z"):
        PlaceSampler([(4, 100, 100)], StackConfig(size_vx=64), seed=0)
    with pytest.raises(BoxError, match=r"on z \(raw\.tif\); take a smaller crop"):
        PlaceSampler([(4, 100, 100)], StackConfig(size_vx=64), seed=0, sources=["raw.tif"])
    with pytest.raises(BoxError, match="offsets_z"):
        StackConfig(offsets_z=(-1, 1))
    with pytest.raises(BoxError, match="at least 1 voxel"):
        CubeConfig(size_vx=(4, 0, 4))
    with pytest.raises(BoxError, match="at least one"):
        PlaceSampler([], StackConfig(), seed=0)


def test_the_generator_is_numpys_philox():
    for seed, stream, key in [(0, 0, Key(0, 0)), (7, 3, Key(2, 10**12)), (2**63, 1, Key(1, 5))]:
        direct = np.random.Philox(key=[seed, stream], counter=[0, 0, key.number, key.epoch])
        expected = np.random.Generator(direct)
        ours = random_at(seed, stream, key)
        for size in (3, 5):
            np.testing.assert_array_equal(ours.random(size), expected.random(size))
            np.testing.assert_array_equal(
                ours.integers(9, size=size), expected.integers(9, size=size)
            )

import numpy as np
import pytest
from em_data import (
    BlockPlan,
    BlockSampler,
    CubeConfig,
    Key,
    PlaceSampler,
    choose_sampler,
    describe,
    open_volume,
)
from em_data.sampler.block_plan import place_figures

CROP = CubeConfig(size_vx=(8, 16, 16))


@pytest.fixture
def volume(tmp_path):
    import zarr

    data = np.random.default_rng(0).integers(0, 255, (64, 128, 128), np.uint8)
    zarr.create_array(tmp_path / "v.zarr", data=data, chunks=(8, 16, 16))
    return open_volume(tmp_path / "v.zarr")


def test_what_is_said_of_independent_crops_is_so(volume):
    draws = PlaceSampler([volume.shape], CROP, seed=0)
    figures = place_figures([volume.chunk_vx], CROP, draws.boxes)
    touched, seen, near = [], np.zeros(volume.shape, bool), []
    recent = []
    for number in range(3000):
        box = draws(Key(0, number)).box
        sides = zip(box.origin_vx, box.size_vx, volume.chunk_vx, strict=True)
        touched.append(np.prod([(-(-(o + s) // c) - o // c) * c / s for o, s, c in sides]))
        if number < 200:
            seen[box.slices] = True
        apart = np.abs(np.array(recent[-1024:] or [[999] * 3]) - box.origin_vx) / box.size_vx
        near.append((np.clip(1 - apart, 0, None).prod(1) > 0.5).any())
        recent.append(box.origin_vx)
    assert np.mean(touched) == pytest.approx(figures.decoded_per_served, rel=0.03)
    words = describe(draws, [volume], samples=200)
    assert words == (
        "independent crops of 8 × 16 × 16 voxels, each read by itself: 7.0 bytes decoded for every "
        f"byte served, {100 * figures.near_duplicates:.0f} % near-duplicates; 200 samples cover 32 % "
        "of the voxels"
    )
    assert seen.mean() == pytest.approx(0.32, abs=0.03)
    # Near-duplicates are stated for the last 1024 crops; here there are 0 to 2999.
    pair = 1 - (1 - figures.near_duplicates) ** (1 / 1024)
    expected = 1 - (1 - pair) ** np.minimum(np.arange(len(near)), 1024)
    assert np.mean(near) == pytest.approx(expected.mean(), rel=0.1)


def test_what_is_said_of_blocks_is_so(volume):
    plan = BlockPlan(chunks=(2, 2, 2), slots=4, positions=6, crops=20)
    draws = BlockSampler(
        [volume.shape], [volume.chunk_vx], CROP, plan, seed=0, samples_per_epoch=10**6
    )
    words = describe(draws, [volume], samples=1000)
    assert words.startswith(
        "crops of 8 × 16 × 16 voxels from 24 blocks in memory (1 MiB with those on their way), 20 "
        "crops of each: 1.35 bytes decoded for every byte served"
    )
    assert words.endswith("1,000 samples cover 86 % of the voxels")


def test_a_loader_decodes_what_the_plan_says(volume):
    from em_data.loader import Loader

    sampler = choose_sampler(
        [volume], CROP, seed=0, samples_per_epoch=10**6, slots=4, budget_bytes=600_000
    )
    assert isinstance(sampler, BlockSampler)
    reader = Loader([volume], sampler, batch_size=4, samples_per_epoch=10**6)
    for _ in reader.batches(0, 600):
        pass
    said = describe(sampler, [volume], samples=6000).split(": ")[1].split(" ")[0]
    measured = reader.counts.decoded_bytes / reader.counts.served_bytes
    assert measured == pytest.approx(float(said), rel=0.15)


def test_volumes_in_memory_are_said_to_be(volume):
    held = volume.held_in_memory()
    draws = PlaceSampler([held.shape], CROP, seed=0)
    assert "from 1 MiB held in memory" in describe(draws, [held], samples=10)

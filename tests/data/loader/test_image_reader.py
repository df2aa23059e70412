"""Crops of images: the same as cutting by hand, grey ranges of each image, damage as the user says."""

import numpy as np
import pytest
from em_data import (
    BoxError,
    Key,
    PlaceSampler,
    StackConfig,
    VolumeReadError,
    choose_sampler,
    describe,
    grey_range,
    match_labels,
    open_images,
)
from em_data.loader import Loader
from PIL import Image

SIZES = ((20, 31), (40, 40), (25, 64), (33, 21))
CROP = StackConfig(size_vx=16, offsets_z=(0,))
TOLD = {"batch_size": 4, "samples_per_epoch": 100}


@pytest.fixture
def folder(tmp_path, voxels):
    """Images of different sizes and contrasts, and their labels."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for number, size in enumerate(SIZES):
        picture = (voxels(size, seed=number) // (number + 1)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(picture > 60).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


def test_batches_are_what_is_cut_by_hand(folder):
    images = open_images(f"images:{folder}/images?voxel_nm=9,2,2")
    labels = match_labels(images, {"bright": f"images:{folder}/labels"})
    sampler = choose_sampler(
        images, CROP, seed=3, samples_per_epoch=100, slots=4, budget_bytes=1, labels=labels
    )
    loader = Loader(images, sampler, labels=labels, **TOLD)
    seen = set()
    for step, batch in enumerate(loader.batches(0, 12)):
        for row, key in enumerate(loader.keys(step)):
            sample = sampler(key)
            seen.add(sample.volume)
            volume, grey = images[sample.volume], grey_range(images[sample.volume])
            want = volume.read(sample.box)
            np.testing.assert_array_equal(batch.raw[row], want)
            np.testing.assert_allclose(batch.image()[row], grey.unit(want), atol=1e-6)
            np.testing.assert_array_equal(batch.labels[row, 0], want > 60)
            assert batch.valid[row].all() and batch.voxel_size_nm[row] == (9, 2, 2)
            np.testing.assert_array_equal(
                batch.origin_nm[row], np.multiply(sample.box.origin_vx, (9, 2, 2))
            )
    assert seen == {0, 1, 2, 3} and loader.counts.decoded_bytes > loader.counts.served_bytes


def test_an_array_of_shapes_draws_what_a_list_draws(folder):
    images = open_images(f"images:{folder}/images")
    for weights in (None, (1, 0, 2, 3)):
        one = PlaceSampler(images.shapes, CROP, seed=1, weights=weights)
        other = PlaceSampler([v.shape for v in images], CROP, seed=1, weights=weights)
        assert [one(Key(0, n)) for n in range(200)] == [other(Key(0, n)) for n in range(200)]
        assert [list(own) for own in one.boxes] == [list(own) for own in other.boxes]
    text = describe(one, images, samples=10)
    decoded = np.average(images.shapes.prod(1), weights=weights) / 256
    assert f"from 4 images, each decoded whole: {decoded:.1f} bytes" in text
    with pytest.raises(BoxError, match=r"exceeds 3 of 4 volumes, as number 1 .*\?least_px=N"):
        PlaceSampler(images.shapes, StackConfig(size_vx=32, offsets_z=(0,)), seed=0)


def test_damaged_images_stop_or_are_left_out(folder):
    path = folder / "images" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for options, threads in (("", 2), ("?unreadable=skip", 2), ("?unreadable=skip", 0)):
        images = open_images(f"images:{folder}/images{options}")
        loader = Loader(images, PlaceSampler(images.shapes, CROP, seed=0), threads=threads, **TOLD)
        if not options:
            with pytest.raises(VolumeReadError, match=r"1\.png"):
                list(loader.batches(0, 5))
            continue
        with pytest.warns(UserWarning, match=r"left out, as the address says: .*1\.png"):
            batches = list(loader.batches(0, 5))
        assert loader.counts.unreadable > 0 and loader.counts.samples == 20
        assert all(batch.scale.isfinite().all() for batch in batches)


def test_one_learns_on_a_real_collection(emps):
    """To take noise away, from single slices of images of different sizes."""
    torch = pytest.importorskip("torch")
    images = open_images(f"images:{emps / 'images'}?least_px=96")[:100]
    crop = StackConfig(size_vx=64, offsets_z=(0,))
    sampler = PlaceSampler(images.shapes, crop, seed=0, weights=[1] * len(images))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 5, padding=2)
    )
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for batch in Loader(images, sampler, **TOLD).batches(0, 60):
        clean = batch.image()
        loss = (network(clean + 0.2 * torch.randn_like(clean)) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.02 < 0.2**2 < np.mean(losses[:3])

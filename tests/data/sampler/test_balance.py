from dataclasses import replace

import numpy as np
import pytest
from em_data import (
    BlockPlan,
    BlockSampler,
    Box,
    BoxError,
    CubeConfig,
    Key,
    PlaceSampler,
    Region,
    choose_sampler,
    open_volume,
    place_labels,
    place_mask,
)
from em_data.sampler.balance import aim_at_classes, aim_at_masks, count_voxels
from em_data.sampler.places import centred, whole

NM = (40, 4, 4)
CUBE = CubeConfig(size_vx=(3, 8, 8))


@pytest.fixture
def raw():
    shape = (20, 64, 64)
    draw = np.random.default_rng(0).integers
    return open_volume(draw(0, 255, shape, np.uint8), voxel_size_nm=NM, origin_nm=(80, 0, 40))


def at(values, origin_vx, size_nm=NM):
    """A volume whose first voxel lies on a voxel of the raw one."""
    origin = [o + p * s for o, p, s in zip((80, 0, 40), origin_vx, NM, strict=True)]
    return open_volume(values, voxel_size_nm=size_nm, origin_nm=tuple(origin))


def centres(sampler, count, volume=0):
    samples = [sampler(Key(0, n)) for n in range(count)]
    shift = sampler.config.centre_vx
    return np.array(
        [np.add(s.box.origin_vx, shift) for s in samples if s.volume == volume], dtype=int
    )


@pytest.mark.parametrize("chunk", [None, (4, 16, 16), (7, 11, 64)])
@pytest.mark.parametrize(
    ("size_nm", "origin_vx", "shape"),
    [
        (NM, (2, 0, -3), (15, 64, 70)),
        ((80, 16, 16), (0, 0, 0), (10, 16, 16)),  # coarser
        ((40, 2, 2), (-1, 8, 8), (22, 64, 128)),  # finer
        ((60, 10, 7), (0.3, -2.2, 5.1), (11, 25, 30)),  # beside the grid
    ],
)
def test_places_in_a_mask_are_counted_and_found(raw, tmp_path, chunk, size_nm, origin_vx, shape):
    mask = (np.random.default_rng(2).random(shape) < 0.03).astype(np.uint8)
    volume = at(mask, origin_vx, size_nm)
    if chunk is not None:
        import zarr

        zarr.create_array(tmp_path / "m.zarr", data=mask, chunks=chunk)
        read = open_volume(tmp_path / "m.zarr")
        volume = replace(read, voxel_size_nm=volume.voxel_size_nm, origin_nm=volume.origin_nm)
    # Brute force: the mask voxel whose centre is nearest to that of each raw voxel.
    inside, index = [], []
    for axis in range(3):
        place_nm = np.arange(raw.shape[axis]) * NM[axis] + raw.origin_nm[axis]
        nearest = np.floor((place_nm - volume.origin_nm[axis]) / size_nm[axis] + 0.5).astype(int)
        inside.append((nearest >= 0) & (nearest < shape[axis]))
        index.append(nearest.clip(0, shape[axis] - 1))
    allowed = mask[np.ix_(*index)].astype(bool) & inside[0][:, None, None]
    allowed &= inside[1][:, None] & inside[2]
    boxes = [Box((0, 0, 0), (9, 57, 57)), Box((9, 20, 0), (5, 30, 57))]
    expected = set()
    for box in boxes:
        own = allowed[
            tuple(
                slice(o + c, o + c + s) for o, c, s in zip(box[0], (1, 4, 4), box[1], strict=True)
            )
        ]
        expected |= {tuple(np.add(place, box.origin_vx).tolist()) for place in np.argwhere(own)}
    (places,) = count_voxels(place_mask(raw, volume), [None], boxes, (1, 4, 4), threads=2)
    assert places.count == len(expected)
    assert {places.find(k) for k in range(places.count)} == expected
    window = Box((3, 10, 10), (8, 30, 30))
    part = places.within(window)
    in_window = {p for p in expected if all(10 <= i < 40 for i in p[1:]) and 3 <= p[0] < 11}
    assert {part.find(k) for k in range(part.count)} == in_window


@pytest.mark.parametrize("blocks", [False, True])
def test_a_rare_class_is_seen_at_the_asked_rate(raw, blocks):
    """0.1 % of the voxels are of the class, in three clumps, and a third of the samples aim at it."""
    classes = np.zeros((16, 64, 64), np.uint8)
    classes[3:6, 10:13, 10:14] = 2
    classes[9, 40:44, 30:34] = 2
    classes[12, 60, 5:15] = 2
    assert 0.0009 < (classes == 2).mean() < 0.0011
    classes[:, :, 40:] += 1
    labels = place_labels(raw, {"classes": at(classes, (0, 0, 0))})
    settings = {
        "regions": [centred(whole(raw.shape), labels.covered)],
        "aims": aim_at_classes([labels], {"2": 0.3}),
    }
    if blocks:
        plan = BlockPlan(chunks=(1, 2, 1), slots=4, positions=5, crops=6)
        settings |= {"seed": 0, "samples_per_epoch": 10**6}
        sampler = BlockSampler([raw.shape], [(4, 16, 16)], CUBE, plan, **settings)
    else:
        sampler = PlaceSampler([raw.shape], CUBE, 0, **settings)
    count = 12_000
    found = centres(sampler, count)
    value = classes[tuple(found.T)]
    # Crops of a block come together, so that fewer of them are independent.
    assert (value == 2).mean() == pytest.approx(0.3 + 0.7 * 0.001, abs=0.05 if blocks else 0.015)
    rest = found[value != 2]
    assert (
        np.histogram(rest[:, 2], 3, (4, 61))[0].std() < (0.15 if blocks else 0.03) * len(rest) / 3
    )
    if not blocks:  # every voxel of the class is as likely as every other
        reached = [place for place in np.argwhere(classes == 2) if place[1] < 61 and place[2] > 3]
        counts = np.array([(found == place).all(1).sum() for place in reached])
        assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.6 * counts.mean()


def test_channels_and_masks_aim_too(raw):
    rare, mask = np.zeros((2, 20, 64, 64), np.uint8)
    rare[5, 20, 20:30] = 7
    mask[10:, 30:, :] = 1
    labels = place_labels(raw, {"rare": at(rare, (0, 0, 0)), "mask": at(mask, (0, 0, 0))})
    (aim,) = aim_at_classes([labels], {"rare": 0.5})
    found = centres(PlaceSampler([raw.shape], CUBE, 0, aims=[aim]), 2000)
    assert (rare[tuple(found.T)] > 0).mean() == pytest.approx(0.5, abs=0.04)
    masked = aim_at_masks([place_mask(raw, at(mask[::2, ::4, ::4], (0.5, 1.5, 1.5), (80, 16, 16)))])
    found = centres(PlaceSampler([raw.shape], CUBE, 0, aims=[masked]), 2000)
    assert found[:, 0].min() == 10 and found[:, 1].min() in (28, 32) and found[:, 2].min() == 4
    both = PlaceSampler([raw.shape] * 2, CUBE, 0, aims=[aim_at_masks([masked.layers[0], None])])
    assert centres(both, 500, volume=1)[:, 0].min() == 1  # the volume without a mask is free


def test_blocks_that_a_layer_misses_are_served_too(raw):
    part, rest = np.ones((20, 64, 12), np.uint8), np.zeros((20, 64, 64), np.uint8)
    rest[:, :, 40:] = 1
    labels = place_labels(raw, {"part": at(part, (0, 0, 0)), "rest": at(rest, (0, 0, 0))})
    aims = aim_at_classes([labels], {"part": 0.4, "rest": 0.6})
    plan = BlockPlan(chunks=(1, 1, 1), slots=4, positions=2, crops=4)
    settings = {"seed": 0, "samples_per_epoch": 10**6, "aims": aims}
    found = centres(BlockSampler([raw.shape], [(4, 16, 16)], CUBE, plan, **settings), 2000)
    assert (found[:, 2] < 12).mean() == pytest.approx(0.4, abs=0.1)
    assert ((found[:, 2] < 12) | (found[:, 2] >= 40)).all()


def test_no_crop_aims_at_what_is_ignored(raw):
    values = np.zeros((20, 64, 64), np.uint8)
    values[5, 20, 20:30], values[6:12] = 1, 9
    labels = place_labels(raw, {"a": at(values, (0, 0, 0))}, ignore=9)
    sampler = PlaceSampler([raw.shape], CUBE, 0, aims=aim_at_classes([labels], {"a": 1.0}))
    assert (values[tuple(centres(sampler, 300).T)] == 1).all()
    assert (labels.read(Box((6, 0, 0), (1, 64, 64))) == 9).all()


def test_what_cannot_be_aimed_at_is_named(raw):
    labels = place_labels(raw, {"a": at(np.eye(64, dtype=np.uint8)[None], (5, 0, 0))})
    ignored = place_labels(raw, {"a": labels.layers[0].volume}, ignore=1)
    two = place_labels(raw, {"a": raw, "b": raw})
    early = [Region((Box((0, 0, 0), (5, 64, 64)),))]
    cases = [
        ({"labels": [labels], "balance": {"a": 0.5}, "regions": early}, BoxError, "'?fits nowhere"),
        ({"labels": [labels], "balance": {"3": 0.5}}, BoxError, "'3' has no voxel of value 3"),
        (
            {"labels": [labels], "balance": {"cell@3": 0.5}},
            BoxError,
            "'cell' has no voxel of value 3",
        ),
        ({"labels": [ignored], "balance": {"a": 0.5}}, BoxError, "'a' has no voxel where"),
        ({"labels": [labels], "balance": {"b": 0.5}}, ValueError, "'b', but the labels are a or"),
        ({"labels": [two], "balance": {"1": 0.5}}, ValueError, "the labels are a, b; name"),
        ({"labels": [two], "balance": {"a": 0.5, "b": 0.6}}, ValueError, "add up to 1.1"),
        ({"balance": {"a": 0.5}}, ValueError, "no volume has labels"),
        ({"masks": [place_mask(raw, raw)], "balance": {"a": 1}}, ValueError, "give one of them"),
        ({"weights": [1, 1]}, ValueError, "for 1 volumes; wanted one for each"),
    ]
    settings = {"seed": 0, "samples_per_epoch": 9, "slots": 1, "budget_bytes": 2**30}
    for changes, error, message in cases:
        with pytest.raises(error, match=message):
            choose_sampler([raw], CUBE, **settings, **changes)
    aims = aim_at_classes([labels, None], {"a": 0.5})
    with pytest.raises(BoxError, match=r"'a' is found in no volume that is drawn.*\(0, 1\)"):
        PlaceSampler([raw.shape] * 2, CUBE, 0, aims=aims, weights=[0, 1])

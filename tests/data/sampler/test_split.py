import numpy as np
import pytest
from em_data import (
    Box,
    BoxError,
    CubeConfig,
    Key,
    PlaceSampler,
    SplitConfig,
    StackConfig,
    hold_out,
    hold_out_images,
)

SHAPE = (40, 60, 50)
CUBE = CubeConfig(size_vx=(5, 8, 8))


def touched(region, crop, samples=4000, shape=SHAPE):
    """How often each voxel was in a crop, and where the centres were."""
    draws = PlaceSampler([shape], crop, seed=0, regions=[region])
    seen, centres = np.zeros(shape, int), np.zeros(shape, int)
    for number in range(samples):
        box = draws(Key(0, number)).box
        seen[box.slices] += 1
        centres[tuple(o + c for o, c in zip(box.origin_vx, crop.centre_vx, strict=True))] += 1
    return seen, centres


def test_training_touches_neither_what_is_held_out_nor_the_gap():
    split = hold_out([SHAPE], CUBE, SplitConfig(z=(18, 22)))
    seen, _ = touched(split.training[0], CUBE)
    assert (seen.sum((1, 2)) == 0).nonzero()[0].tolist() == [*range(16, 24)]  # gap: half a crop
    assert seen[:16].any() and seen[24:].any()


def test_validation_looks_at_the_held_out_voxels_and_reads_the_gap():
    split = hold_out([SHAPE], CUBE, SplitConfig(z=(18, 22)))
    seen, centres = touched(split.validation[0], CUBE)
    assert centres.sum((1, 2)).nonzero()[0].tolist() == [18, 19, 20, 21]
    assert seen.sum((1, 2)).nonzero()[0].tolist() == [*range(16, 24)]
    assert split.held_out == ((Box((18, 0, 0), (4, 60, 50)),),)


@pytest.mark.parametrize("gap", [None, (0, 0, 0), (3, 6, 1)])
def test_training_never_meets_what_validation_reads_around_boxes(gap):
    boxes = (Box((10, 20, 20), (6, 9, 9)), Box((20, 40, 5), (5, 5, 5)))
    split = hold_out([SHAPE], CUBE, SplitConfig(boxes=boxes, gap_vx=gap))
    seen, _ = touched(split.training[0], CUBE, samples=20_000)
    closed = np.zeros(SHAPE, bool)
    for box in boxes:
        sides = zip(box.origin_vx, box.size_vx, gap or (2, 4, 4), strict=True)
        closed[tuple(slice(o - g, o + s + g) for o, s, g in sides)] = True
    assert not seen[closed].any()
    # All else is reached, but for what lies deep in the corners of the volume.
    assert (seen[2:-2, 4:-4, 4:-4][~closed[2:-2, 4:-4, 4:-4]] > 0).mean() > 0.99
    if gap is None:
        checked, _ = touched(split.validation[0], CUBE)
        assert checked.any() and not (checked.astype(bool) & ~closed).any()


def test_the_last_fifth_of_what_is_labelled_is_held_out_without_being_told():
    split = hold_out([SHAPE], CUBE)
    assert split.held_out[0] == (Box((32, 0, 0), (8, 60, 50)),)
    labelled = Box((0, 10, 0), (16, 50, 50))  # as vnc_sstem: fewer slices than the raw volume
    stack = StackConfig(size_vx=9)
    split = hold_out([SHAPE], stack, covered=[(labelled,)])
    _, training = touched(split.training[0], stack)
    _, checking = touched(split.validation[0], stack)
    assert split.held_out[0] == (Box((12, 0, 0), (4, 60, 50)),)
    assert training.sum((1, 2)).nonzero()[0].tolist() == [*range(2, 8)]  # crops end below slice 10
    assert checking.sum((1, 2)).nonzero()[0].tolist() == [12, 13, 14, 15]
    assert not training[:, :10].any() and not checking[:, :10].any()


def test_nothing_held_out_leaves_all_for_training():
    split = hold_out([SHAPE, SHAPE], CUBE, SplitConfig(last_z=0))
    assert split.held_out == ((), ())
    assert split.training[1].inside == (Box((0, 0, 0), SHAPE),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitConfig(z=(5, 5)), r"\(5, 5\) are empty"),
        (lambda: SplitConfig(last_z=1), "last_z is 1"),
        (lambda: SplitConfig(z=(1, 2), boxes=(Box((0, 0, 0), (1, 1, 1)),)), "one of both"),
        (lambda: SplitConfig(gap_vx=(-1, 0, 0)), "gap_vx"),
        (lambda: hold_out([SHAPE], CUBE, SplitConfig(z=(30, 41))), r"30:41 .* has slices 0:40"),
        (
            lambda: hold_out([SHAPE], CUBE, SplitConfig(boxes=(Box((0, 0, 45), (4, 4, 6)),))),
            r"at \(0, 0, 45\) leaves the volume \(40, 60, 50\)",
        ),
        (
            lambda: hold_out(
                [SHAPE], CUBE, SplitConfig(z=(20, 30)), covered=[(Box((0, 0, 0), (16, 60, 50)),)]
            ),
            r"nothing that is held out of volume 1 is labelled: labels lie in z 0:16",
        ),
        (
            lambda: PlaceSampler(
                [SHAPE], CUBE, 0, regions=hold_out([SHAPE], CUBE, SplitConfig(z=(4, 38))).training
            ),
            "fits nowhere into",
        ),
    ],
)
def test_ranges_that_cannot_be_held_out_are_refused(make, message):
    with pytest.raises(BoxError, match=message):
        make()


@pytest.mark.parametrize(
    ("held", "numbers"),
    [(0.2, [2, 7]), (1, [5]), (3, [1, 5, 8]), (0, []), ((7, 10), [7, 8, 9]), (0.01, [5])],
)
def test_images_are_held_out_whole_and_evenly_spread(held, numbers):
    split = hold_out_images(10, held)
    assert split.held.tolist() == numbers
    assert sorted([*split.training, *split.held]) == list(range(10))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (10, "all of 10 images are held out"),
        (11, "11 of 10 images"),
        (1.5, "wanted a share from 0 to below 1, or a whole number"),
        (-0.1, "wanted a share"),
        ((4, 4), "wanted 0 ≤ first < end ≤ 10"),
        ((4, 11), "4:11 are not among 10"),
    ],
)
def test_images_that_cannot_be_held_out_are_refused(held, message):
    with pytest.raises(BoxError, match=message):
        hold_out_images(10, held)

"""Sets of origins against lists of them, made by brute force."""

import itertools

import numpy as np
import pytest
from em_data import Box, BoxError, Region
from em_data.geometry import disjoint, end_of, subtract
from em_data.sampler.places import Anywhere, Mixture, centred, origins, whole

SHAPE = (9, 11, 13)


def voxels(boxes):
    covered = np.zeros(SHAPE, int)
    for box in boxes:
        covered[box.slices] += 1
    return covered


def random_boxes(rng, count):
    for _ in range(count):
        low = [int(rng.integers(0, n - 1)) for n in SHAPE]
        size = [int(rng.integers(1, n - o + 1)) for o, n in zip(low, SHAPE, strict=True)]
        yield Box(tuple(low), tuple(size))


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_taken_apart_without_losing_or_doubling_a_voxel(seed):
    rng = np.random.default_rng(seed)
    a, b, c, d = random_boxes(rng, 4)
    rest = voxels(subtract(a, b))
    np.testing.assert_array_equal(rest, (voxels([a]) > 0) & (voxels([b]) == 0))
    np.testing.assert_array_equal(voxels(disjoint([a, b, c, d])), voxels([a, b, c, d]) > 0)


@pytest.mark.parametrize("seed", range(10))
def test_origins_are_those_of_the_crops_that_a_region_allows(seed):
    rng = np.random.default_rng(seed)
    inside, centres = tuple(random_boxes(rng, 3)), tuple(random_boxes(rng, 2))
    crop, centre = (2, 3, 2), (1, 1, 1)
    region = Region(inside, centres)
    expected = np.zeros(SHAPE, bool)
    is_centre = voxels(centres) > 0
    for place in itertools.product(*(range(n - s + 1) for n, s in zip(SHAPE, crop, strict=True))):
        own = Box(place, crop)
        held = any(
            all(
                lo <= o and o + s <= hi
                for lo, o, s, hi in zip(box.origin_vx, place, crop, end_of(box), strict=True)
            )
            for box in inside
        )
        expected[place] = (
            held and is_centre[tuple(o + c for o, c in zip(own.origin_vx, centre, strict=True))]
        )
    if not expected.any():
        with pytest.raises(BoxError, match="fits nowhere into z"):
            origins([SHAPE], crop, centre, [region])
        return
    (boxes,) = origins([SHAPE], crop, centre, [region])
    np.testing.assert_array_equal(voxels(boxes), expected)
    places = Anywhere(tuple(boxes))
    found = [places.find(k) for k in range(places.count)]
    assert len(set(found)) == len(found) == expected.sum()
    part = places.within(Box((2, 2, 2), (4, 4, 4)))
    assert part.count == expected[2:6, 2:6, 2:6].sum()


def test_a_mixture_keeps_its_shares_and_weights():
    kinds = (
        (Anywhere((Box((0, 0, 0), (1, 1, 1)),)), Anywhere(())),
        (Anywhere((Box((1, 0, 0), (3, 4, 5)),)), Anywhere((Box((0, 0, 0), (1, 2, 3)),))),
    )
    rng = np.random.default_rng(0)
    drawn = [Mixture(kinds, (0.25, 0.75), (1, 3)).draw(rng) for _ in range(8000)]
    first = np.mean([place == (0, 0, 0) and volume == 0 for volume, place in drawn])
    assert first == pytest.approx(0.25, abs=0.02)
    assert np.mean([volume for volume, _ in drawn]) == pytest.approx(0.75 * 0.75, abs=0.02)
    by_places = [Mixture(kinds, (0.25, 0.75)).draw(rng)[0] for _ in range(8000)]
    assert np.mean(by_places) == pytest.approx(0.75 * 6 / 66, abs=0.02)


def test_a_part_of_a_mixture_keeps_how_likely_its_places_are():
    kinds = (
        (Anywhere((Box((0, 0, 0), (2, 1, 1)),)),),
        (Anywhere((Box((0, 0, 0), (4, 4, 4)),)),),
    )
    part = Mixture(kinds, (0.5, 0.5)).within(0, Box((0, 0, 0), (1, 4, 4)))
    # Half of the first kind is in there, a quarter of the second: .25 against .125.
    rng = np.random.default_rng(0)
    drawn = [part.draw(rng)[1] for _ in range(8000)]
    expected = 2 / 3 + 1 / 3 / 16
    assert np.mean([place == (0, 0, 0) for place in drawn]) == pytest.approx(expected, abs=0.02)
    assert {place[0] for place in drawn} == {0}


def test_what_cannot_be_is_refused():
    with pytest.raises(BoxError, match="1 regions for 2 volumes"):
        origins([SHAPE, SHAPE], (1, 1, 1), (0, 0, 0), [whole(SHAPE)])
    with pytest.raises(BoxError, match=r"z 0:20.* leaves the volume \(9, 11, 13\)"):
        origins([SHAPE], (1, 1, 1), (0, 0, 0), [whole((20, 11, 13))])
    region = centred(whole(SHAPE), [Box((0, 0, 0), (1, 1, 1))])
    with pytest.raises(BoxError, match=r"with its centre in z 0:1, y 0:1, x 0:1"):
        origins([SHAPE], (3, 3, 3), (1, 1, 1), [region])
    both = centred(region, [Box((0, 0, 0), (4, 4, 4)), Box((5, 5, 5), (1, 1, 1))])
    assert both.centres == (Box((0, 0, 0), (1, 1, 1)),)

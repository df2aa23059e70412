import numpy as np
import pytest
from em_train.segment.instances import (
    Subject,
    components,
    divide,
    grown_together,
    judge_instances,
    overlaps,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt
from skimage.measure import label
from skimage.metrics import adapted_rand_error, variation_of_information

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_instance_scores_equal_scikit_image(seed, slices):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, (slices, 5, 5)).repeat(3, 1).repeat(3, 2) * 1000
    predicted = np.where(
        rng.random(truth.shape) > 0.2, truth // 2000, rng.integers(0, 5, truth.shape)
    )
    if not truth.any():
        return
    got = judge_instances(map(overlaps, predicted, truth))
    # scikit-image sees the slices at once, with numbers of their own in each.
    of_slice = np.arange(1, slices + 1)[:, None, None]
    known = truth > 0  # its own way of leaving labels out divides by all voxels
    predicted = predicted + 10_000 * of_slice
    truth = np.where(known, truth + 10_000 * of_slice, 0)
    split, merge = variation_of_information(truth[known], predicted[known])
    assert (got.voi_split, got.voi_merge) == pytest.approx((split, merge), abs=1e-9)
    # Its precision is, against its documentation, of the pairs in one true instance: our recall.
    error, recall, precision = adapted_rand_error(truth, predicted, ignore_labels=(0,))
    assert got.rand_error == pytest.approx(error)
    assert (got.rand_precision, got.rand_recall) == pytest.approx((precision, recall))
    assert got.instances == len(np.unique(truth[known]))


def test_instances_that_agree_and_that_cannot_be_judged():
    truth = np.arange(1, 5).repeat(4)
    same = judge_instances([overlaps(truth * 7, truth)])
    assert (same.voi_split, same.voi_merge, same.rand_error) == pytest.approx((0, 0, 0))
    with pytest.raises(ValueError, match="wanted the same"):
        overlaps(truth, truth[:-1])
    for nothing in ([], [overlaps(truth, np.zeros_like(truth))]):
        with pytest.raises(ValueError, match="no instance"):
            judge_instances(nothing)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
def test_components_equal_scikit_image(seed, height, width, values):
    image = np.random.default_rng(seed).integers(0, values + 1, (height, width))
    np.testing.assert_array_equal(components(image), label(image, connectivity=1, background=0))


def test_a_winding_component_is_one():
    snake = np.zeros((41, 61), int)
    snake[::2] = 1
    snake[1::4, -1] = snake[3::4, 0] = 1
    for image in (snake, snake.T, snake[::-1]):
        assert components(image).max() == 1
    snake[20, 30] = 0
    assert components(snake).max() == components(snake.T).max() == 2


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_instances_grow_to_where_they_meet(seed):
    """Every pixel goes to one of the instances that are fewest steps away."""
    rng = np.random.default_rng(seed)
    seeds = np.where(rng.random((30, 40)) > 0.98, rng.integers(1, 5, (30, 40)), 0)
    got = grown_together(seeds)
    if not seeds.any():
        assert not got.any()
        return
    steps = {n: distance_transform_cdt(seeds != n, "taxicab") for n in np.unique(seeds[seeds > 0])}
    nearest = np.min(list(steps.values()), 0)
    for number, distance in steps.items():
        assert (distance[got == number] == nearest[got == number]).all()
    np.testing.assert_array_equal(got[seeds > 0], seeds[seeds > 0])
    assert (got > 0).all()


def test_touching_objects_stay_apart_where_labels_are_numbered():
    labels = np.array([[3, 3, 9, 9], [0, 0, 0, 0], [3, 3, 0, 9]])
    found, known = labels > 0, np.ones(labels.shape, bool)
    known[2, 3] = False
    predicted, true = divide(found, labels, known, between=False)
    assert true.tolist() == [[1, 1, 2, 2], [0, 0, 0, 0], [3, 3, 0, 0]]
    assert predicted.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [2, 2, 0, 3]]
    score = judge_instances([overlaps(predicted, true)])
    assert score.voi_split == 0 < score.voi_merge and score.instances == 3


def test_how_wide_borders_are_drawn_says_nothing_about_the_cells():
    labels, found = np.zeros((9, 21), int), np.zeros((9, 21), bool)
    labels[:, 10] = 1
    found[:, 8:13] = True
    everywhere = np.ones(labels.shape, bool)
    score = judge_instances([overlaps(*divide(found, labels, everywhere, between=True))])
    assert (score.voi_split, score.voi_merge, score.instances) == (0, 0, 2)
    found[4] = False  # a hole joins them
    score = judge_instances([overlaps(*divide(found, labels, everywhere, between=True))])
    assert score.voi_split == 0 and score.voi_merge == pytest.approx(1)
    assert Subject.of("mito", ("membrane", "mito")) == (1, False)
    with pytest.raises(ValueError, match="'cell'; wanted one of membrane, mito"):
        Subject.of("between:cell", ("membrane", "mito"))

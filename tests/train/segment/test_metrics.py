import math

import numpy as np
import pytest
import torch
from em_train.segment.metrics import (
    COUNTS,
    SCORES,
    Judged,
    average_precision,
    best_thresholds,
    boundaries,
    count_tiles,
    grown,
    histograms,
    intervals,
    judge,
    scores,
    threshold_level,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_f1_score,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

SEEDS = st.integers(0, 2**32 - 1)


def blobs(rng, shape=(2, 60, 70), size=7):
    """Random masks with an inside."""
    coarse = rng.random((shape[0], -(-shape[1] // size), -(-shape[2] // size))) > 0.6
    return coarse.repeat(size, 1).repeat(size, 2)[:, : shape[1], : shape[2]]


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_overlap_scores_equal_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    predicted, truth = blobs(rng), blobs(rng)
    valid = rng.random(truth.shape) > 0.2
    got = scores(count_tiles(predicted, truth, valid, 1, tile_vx=16).sum(0))
    peers = {
        "accuracy": binary_accuracy,
        "dice": binary_f1_score,
        "iou": binary_jaccard_index,
        "precision": binary_precision,
        "recall": binary_recall,
    }
    for c in range(len(truth)):
        found, true = (torch.from_numpy(x[c].astype(np.int64)) for x in (predicted, truth))
        true = torch.where(torch.from_numpy(valid[c]), true, -1)
        for name, peer in peers.items():
            assert got[name][c] == pytest.approx(
                float(peer(found, true, ignore_index=-1)), abs=1e-6
            )


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(0, 5))
def test_boundary_f1_equals_distance_transforms(seed, tolerance):
    """Against scikit-image's boundaries and scipy's exact distances."""
    rng = np.random.default_rng(seed)
    predicted, truth = blobs(rng), blobs(rng)
    everywhere = np.ones(truth.shape, bool)
    got = scores(count_tiles(predicted, truth, everywhere, tolerance, tile_vx=16).sum(0))
    for c in range(len(truth)):
        found, true = (
            find_boundaries(x[c], connectivity=1, mode="inner") for x in (predicted, truth)
        )
        precision = (distance_transform_edt(~true)[found] <= tolerance).mean()
        recall = (distance_transform_edt(~found)[true] <= tolerance).mean()
        want = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert got["boundary_f1"][c] == pytest.approx(want)


def test_what_is_not_valid_makes_no_boundary_and_hides_none():
    inside = np.zeros((1, 8, 8), bool)
    inside[:, :, 4:] = True
    valid = np.ones_like(inside)
    valid[:, :, 3] = False  # what lies outside, next to it, is unknown
    assert not boundaries(inside, valid).any()
    assert boundaries(inside, np.ones_like(valid)).sum() == 8


def test_grown_is_a_disc():
    mask = np.zeros((1, 11, 11), bool)
    mask[0, 5, 5] = True
    y, x = np.indices((11, 11)) - 5
    np.testing.assert_array_equal(grown(mask, 3)[0], y**2 + x**2 <= 9)
    assert grown(mask, 40).all()


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_average_precision_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((2, 20, 20)) > 0.8
    probability = np.clip(60 * truth + 60 * rng.standard_normal(truth.shape) + 90, 0, 255)
    probability = probability.astype(np.uint8)
    valid = rng.random(truth.shape) > 0.3
    got = average_precision(histograms(probability, truth, valid))
    for c in range(2):
        want = average_precision_score(truth[c][valid[c]], probability[c][valid[c]])
        assert got[c] == pytest.approx(want)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_best_thresholds_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((1, 20, 20)) > 0.8
    probability = np.clip(60 * truth + 60 * rng.standard_normal(truth.shape) + 90, 0, 255)
    probability, valid = probability.astype(np.uint8), np.ones_like(truth)

    def dice(level):
        found = probability >= level
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    (threshold,) = best_thresholds(histograms(probability, truth, valid))
    assert dice(threshold_level(threshold)) == max(dice(level) for level in range(1, 256))


def test_counts_of_tiles_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    predicted, truth = blobs(rng, (3, 100, 130)), blobs(rng, (3, 100, 130))
    valid = np.ones_like(truth)
    tiles = count_tiles(predicted, truth, valid, 2, tile_vx=32)
    whole = count_tiles(predicted, truth, valid, 2, tile_vx=1000)
    assert tiles.shape == (4 * 5, 3, len(COUNTS))
    np.testing.assert_array_equal(tiles.sum(0), whole[0])
    valid[:, :32, :32] = False  # a tile that nobody labelled is none
    assert len(count_tiles(predicted, truth, valid, 2, tile_vx=32)) == 19


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Coverage over repeated worlds of tiles with a known Dice."""
    rng = np.random.default_rng(1)
    hits = 0
    for world in range(120):
        counts = np.zeros((60, 1, len(COUNTS)), np.int64)
        size = rng.integers(200, 800, 60)
        counts[:, 0, 0] = rng.binomial(size, 0.8)  # true positives: of each found pixel, .8
        counts[:, 0, 1] = size - counts[:, 0, 0]
        low, high = intervals(counts, rounds=300, seed=world)["precision"][0]
        hits += low <= 0.8 <= high
    assert 0.88 < hits / 120 < 0.99


def test_judge_gathers_slices_classes_and_intervals():
    rng = np.random.default_rng(0)
    slices = []
    for z in range(3):
        truth = blobs(rng, (2, 300, 300), 20)
        probability = np.clip(255 * truth - rng.integers(0, 200, truth.shape), 0, 255)
        valid = np.ones_like(truth)
        valid[1] = z < 2
        slices.append(Judged(f"z {z}", probability.astype(np.uint8), truth, valid))
    found = judge(iter(slices), ("membrane", "mitochondria"), (0.2, 0.5))
    for c, one in enumerate(found):
        assert set(one.scores) == set(SCORES) == set(one.intervals)
        for name, (low, high) in one.intervals.items():
            assert low <= one.scores[name] <= high
        levels = [math.ceil(255 * one.threshold)] * 3
        pairs = [(s.probability[c] >= v, s.truth[c]) for s, v in zip(slices, levels, strict=True)]
        pairs = pairs[: 3 - c]
        overlap = sum((a & b).sum() for a, b in pairs)
        assert one.scores["dice"] == pytest.approx(
            2 * overlap / sum(a.sum() + b.sum() for a, b in pairs)
        )
        assert list(one.slices) == ["z 0", "z 1", "z 2"]
    assert math.isnan(found[1].slices["z 2"]["dice"])
    assert found[1].as_json()["slices"]["z 2"]["dice"] is None
    with pytest.raises(ValueError, match="no slice"):
        judge([], ("a",), (0.5,))


def test_pieces_of_a_slice_are_scored_together():
    truth = np.zeros((1, 20, 40), bool)
    truth[:, :10], truth[:, :, 30:] = True, True
    probability, valid = np.full(truth.shape, 255, np.uint8), np.ones_like(truth)
    halves = [
        Judged("z 3", *(one[:, :, part] for one in (probability, truth, valid)))
        for part in (slice(20), slice(20, 40))
    ]
    (whole,) = judge([Judged("z 3", probability, truth, valid)], ("a",), (0.5,))
    (found,) = judge(halves, ("a",), (0.5,))
    assert found.slices["z 3"]["precision"] == whole.slices["z 3"]["precision"] == truth.mean()


def test_nothing_to_score_is_not_a_number():
    nothing = np.zeros((1, 8, 8), bool)
    counts = count_tiles(nothing, nothing, ~nothing, 1).sum(0)
    got = scores(counts)
    assert all(math.isnan(got[name][0]) for name in ("dice", "iou", "recall", "boundary_f1"))
    assert got["accuracy"][0] == 1
    missed = scores(
        count_tiles(
            nothing,
            boundaries(blobs(np.random.default_rng(0), (1, 8, 8), 3), ~nothing),
            ~nothing,
            1,
        ).sum(0)
    )
    assert missed["dice"][0] == missed["boundary_f1"][0] == 0
    assert math.isnan(
        average_precision(histograms(np.zeros((1, 8, 8), np.uint8), nothing, ~nothing))[0]
    )
    with pytest.raises(ValueError, match="threshold is 0"):
        threshold_level(0.0)

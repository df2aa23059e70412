import math

import numpy as np
import pytest
import torch
from em_train.judge.codes import (
    NONE,
    contingency,
    effective_classes,
    homogeneity,
    iou,
    kappa,
    largest_share,
    majority_names,
    matched_names,
    nmi,
    share_told,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score, homogeneity_score, jaccard_score

labels = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


@settings(deadline=None)
@given(labels)
def test_nmi_equals_its_definition(pairs):
    codes, classes = np.array(pairs).T
    joint = np.histogram2d(codes, classes, bins=(np.arange(8), np.arange(6)))[0] / len(pairs)
    h_codes, h_classes = entropy(joint.sum(1)), entropy(joint.sum(0))
    shared = h_codes + h_classes - entropy(joint.ravel())
    expected = shared / ((h_codes + h_classes) / 2) if h_codes + h_classes > 0 else 0
    assert nmi(torch.tensor(codes), torch.tensor(classes)) == pytest.approx(expected, abs=1e-9)


def test_nmi_ignores_names_and_independent_labels():
    codes = torch.arange(1000) % 4
    assert nmi(codes, (codes + 1) % 4) == pytest.approx(1)
    assert nmi(codes, torch.arange(1000) // 4 % 5) == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(labels)
def test_homogeneity_equals_its_definition(pairs):
    codes, classes = np.array(pairs).T
    found = homogeneity(torch.tensor(codes), torch.tensor(classes))
    if (
        len(set(classes)) > 1
    ):  # of a single class, scikit-learn says 1, and there is nothing to tell
        assert found == pytest.approx(homogeneity_score(classes, codes), abs=1e-9)
        # What the classes tell of the codes is the other side of it.
        told = share_told(torch.tensor(classes), torch.tensor(codes))
        assert told == pytest.approx(found, abs=1e-12)
    else:
        assert found == 0


def test_effective_classes_and_largest_share():
    assert effective_classes(torch.arange(10)) == pytest.approx(10)
    assert effective_classes(torch.zeros(10)) == pytest.approx(1)
    assert largest_share(torch.tensor([3, 3, 3, 0])) == pytest.approx(0.75)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_kappa_equals_its_definition(pairs):
    first, second = np.array(pairs).T
    found = kappa(torch.tensor(first), torch.tensor(second))
    if len(set(first)) == 1 and set(first) == set(second):
        assert math.isnan(found)
    else:
        names = list(range(5))
        assert found == pytest.approx(cohen_kappa_score(first, second, labels=names), abs=1e-9)


def test_iou_equals_its_definition_and_absent_classes_do_not_count():
    rng = np.random.default_rng(0)
    true, named = rng.integers(0, 4, 500), rng.integers(0, 6, 500)
    named[:50] = NONE
    found = iou(torch.tensor(named), torch.tensor(true), 6)
    expected = jaccard_score(true, named, labels=range(4), average=None)
    np.testing.assert_allclose(found[:4], expected, atol=1e-12)
    assert found[4:].isnan().all()


def test_codes_are_named_by_the_majority():
    codes, classes = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([2, 2, 1, 1, 1, 2])
    names = majority_names(contingency(codes, classes, k=4, n=3))
    assert names.tolist() == [2, 1, 1, 2]  # code 2 was not met; classes 1 and 2 are as frequent


@pytest.mark.parametrize(("k", "n"), [(9, 4), (4, 4), (3, 6), (50, 6), (1, 1)])
def test_matched_names_are_the_best_assignment(k, n):
    rng = np.random.default_rng(k)
    for _ in range(20):
        counts = rng.integers(0, 30, (k, n)) * (rng.random((k, n)) < 0.5) + np.eye(k, n)
        union = counts.sum(1, keepdims=True) + counts.sum(0) - counts
        overlap = counts / np.maximum(union, 1)
        rows, columns = linear_sum_assignment(-overlap)
        names = matched_names(torch.tensor(counts)).numpy()
        named = np.flatnonzero(names != NONE)
        assert len(named) == min(k, n) == len(set(names[named]))
        best = overlap[rows, columns].sum()
        assert overlap[named, names[named]].sum() == pytest.approx(best, abs=1e-12)

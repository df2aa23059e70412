import numpy as np
import pytest
import torch
from em_train.metrics import effective_classes, nmi
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

labels = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


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


def test_effective_classes():
    assert effective_classes(torch.arange(10)) == pytest.approx(10)
    assert effective_classes(torch.zeros(10)) == pytest.approx(1)

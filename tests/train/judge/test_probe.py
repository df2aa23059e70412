import numpy as np
import pytest
import torch
from em_train.features.pooling import pooled
from em_train.judge.probe import few_of_each, fit_probe
from scipy.ndimage import uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


def blobs(n, dimensions, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, dimensions)) * 0.7
    points = (centres[labels] + rng.normal(size=(n, dimensions))) * rng.uniform(
        0.01, 50, dimensions
    )
    return points + rng.normal(size=dimensions) * 100, labels


@pytest.mark.parametrize("classes", [2, 5])
def test_the_probe_equals_scikit_learns(classes):
    points, labels = blobs(600, 7, classes)
    probe = fit_probe(torch.tensor(points), torch.tensor(labels), n=classes)
    scaler = StandardScaler().fit(points)
    model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    model.fit(scaler.transform(points), labels)
    new, _ = blobs(4000, 7, classes, seed=1)
    agreement = probe(torch.tensor(new)).numpy() == model.predict(scaler.transform(new))
    if classes > 2:  # of two classes, scikit-learn penalises one plane where two are here
        weight = probe.weight - probe.weight.mean(0)
        np.testing.assert_allclose(weight, model.coef_ - model.coef_.mean(0), atol=2e-3)
        bias = probe.bias - probe.bias.mean()
        np.testing.assert_allclose(bias, model.intercept_ - model.intercept_.mean(), atol=2e-3)
    assert agreement.mean() > 0.998


def test_a_class_that_was_not_met_is_never_named():
    points, labels = blobs(300, 3, 2)
    probe = fit_probe(torch.tensor(points), torch.tensor(labels * 2), n=4)
    assert set(probe(torch.tensor(points)).tolist()) == {0, 2}
    constant = fit_probe(torch.ones(20, 2), torch.arange(20) % 2, n=2)
    assert torch.isfinite(constant.weight).all()


def test_few_of_each_class_and_none_unlabelled():
    classes = torch.tensor([-1] * 50 + [0] * 40 + [2] * 5)
    chosen = few_of_each(classes, per_class=10, seed=3)
    assert torch.bincount(classes[chosen]).tolist() == [10, 0, 5]
    assert torch.equal(chosen, few_of_each(classes, per_class=10, seed=3))
    assert not torch.equal(chosen, few_of_each(classes, per_class=10, seed=4))


def test_pooled_features_are_means_over_windows():
    features = torch.rand(1, 2, 24, 30, dtype=torch.float64)
    found = pooled(features)
    assert found.shape == (1, 8, 24, 30)
    for i, k in enumerate((1, 3, 7, 11)):
        expected = uniform_filter(features[0, 1].numpy(), k)
        np.testing.assert_allclose(
            found[0, 2 * i + 1, 5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-12
        )
    flat = pooled(torch.ones(1, 1, 12, 12))
    torch.testing.assert_close(flat, torch.ones_like(flat))  # windows are cut off at the border

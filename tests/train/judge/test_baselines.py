import numpy as np
import pytest
import torch
from em_train.judge.baselines import assign, fit_mixture, grey_centres, grey_codes, kmeans, smooth
from scipy.ndimage import gaussian_filter
from sklearn.mixture import GaussianMixture


def test_smoothing_equals_scipy():
    slices = torch.rand(2, 40, 50, dtype=torch.float64)
    expected = gaussian_filter(slices.numpy(), (0, 2, 2), mode="mirror", truncate=4)
    np.testing.assert_allclose(smooth(slices, 2.0), expected, atol=1e-12)


def test_separate_clusters_are_found():
    torch.manual_seed(0)
    truth = torch.arange(3).repeat(100)
    points = torch.tensor([[0.0, 0], [5, 0], [0, 5]])[truth] + 0.1 * torch.randn(300, 2)
    found = assign(points, kmeans(points, 3, seed=1))
    assert {tuple(pair) for pair in torch.stack([found, truth], 1).tolist()}.__len__() == 3


def test_grey_codes_follow_intensity_alone():
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    codes = grey_codes(ramp, grey_centres(ramp, 8))
    assert codes.unique().numel() == 8
    assert all(codes[0, :, x].unique().numel() == 1 for x in range(64))
    with pytest.raises(ValueError, match="lower k"):
        kmeans(torch.zeros(10, 1), 2)


def test_a_mixture_equals_scikit_learns_from_the_same_start():
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(4, 3, 3))
    points = np.concatenate(
        [rng.normal(size=(300, 3)) @ a + 4 * rng.normal(size=3) for a in shapes]
    )
    points = (points - points.mean(0)) / points.std(0)
    start = torch.tensor(points).float()
    nearest = assign(start, kmeans(start, 4, seed=2))
    found = fit_mixture(torch.tensor(points), 4, seed=2, rounds=12, tolerance=0)

    reference = GaussianMixture(4, max_iter=12, tol=0, reg_covar=1e-6)
    reference._initialize_parameters(points, np.random.RandomState(0))
    reference._initialize(points, np.eye(4)[nearest.numpy()])
    for _ in range(11):
        _, log_shares = reference._e_step(points)
        reference._m_step(points, log_shares)
    np.testing.assert_allclose(found.means, reference.means_, atol=1e-6)
    np.testing.assert_allclose(found.log_weights.exp(), reference.weights_, atol=1e-6)
    expected = reference._estimate_weighted_log_prob(points)
    np.testing.assert_allclose(found.log_densities(torch.tensor(points)), expected, atol=1e-4)
    assert (found.assign(torch.tensor(points)).numpy() == reference.predict(points)).mean() > 0.999

import numpy as np
import pytest
import torch
from em_train.baselines import assign, grey_centres, grey_codes, kmeans, smooth
from scipy.ndimage import gaussian_filter


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

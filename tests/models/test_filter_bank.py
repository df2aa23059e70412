import numpy as np
import pytest
import torch
from em_models import FilterBank, FilterBankConfig
from scipy import ndimage


def reference(image, sigma):
    """The five features of a scale by scipy.ndimage, borders included."""
    smooth = ndimage.gaussian_filter(image, sigma)
    dyy, dxy, dxx = (
        ndimage.gaussian_filter(image, sigma, order=o) for o in [(2, 0), (1, 1), (0, 2)]
    )
    hessian = np.stack([dyy, dxy, dxy, dxx], -1).reshape(*image.shape, 2, 2)
    smaller, larger = np.moveaxis(np.linalg.eigvalsh(hessian), -1, 0)
    variance = ndimage.gaussian_filter(image**2, sigma) - smooth**2
    gradient = ndimage.gaussian_gradient_magnitude(image, sigma)
    return np.stack([smooth, gradient, larger, smaller, np.sqrt(variance)])


def test_features_are_those_of_scipy():
    image = np.random.default_rng(0).uniform(0, 255, (83, 90))
    bank = FilterBank(FilterBankConfig()).double()
    m = bank.config.margin
    got = bank.compute(torch.from_numpy(image)[None, None])[0]
    expected = np.concatenate([reference(image, sigma) for sigma in bank.config.sigmas])
    assert got.shape == (bank.config.features, 83 - 2 * m, 90 - 2 * m) == (20, 19, 26)
    np.testing.assert_allclose(got, expected[:, m:-m, m:-m], atol=1e-10)


def test_single_precision_serves_16_bit_images():
    image = np.random.default_rng(0).normal(30000, 100, (40, 41))
    bank = FilterBank(FilterBankConfig(sigmas=(2.0,)))
    got = bank.compute(torch.from_numpy(image).float()[None, None])[0]
    expected = reference(image, 2.0)[:, 8:-8, 8:-8]
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_steps_leave_features_out():
    bank, image = FilterBank(FilterBankConfig(sigmas=(1.0, 3.0))), torch.rand(2, 1, 50, 43)
    every, some = bank(image), bank(image, step=4)
    torch.testing.assert_close(some, every[..., ::4, ::4])


def test_fitted_features_are_standardised_and_stay_so():
    images = torch.rand(3, 1, 40, 40)
    images[:, :, 20:] += 1
    bank = FilterBank(FilterBankConfig(sigmas=(1.0, 2.0))).fit(images)
    found = bank(images)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(10), atol=1e-3, rtol=0)
    assert bank(images + 1)[:, 0].mean() > 1  # the mean that was fitted, not that of the image
    flat = FilterBank(FilterBankConfig(sigmas=(1.0,))).fit(torch.full((1, 1, 12, 12), 0.7))
    assert flat(torch.full((1, 1, 12, 12), 0.7)).abs().max() < 1e-3


def test_half_precision_around_it_changes_nothing():
    bank, image = FilterBank(FilterBankConfig(sigmas=(2.0,))), torch.rand(1, 1, 30, 30)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bank(image), bank.compute(image), rtol=0, atol=0)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="receptive field of 65 px"):
        FilterBank(FilterBankConfig())(torch.zeros(1, 1, 64, 80))
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        FilterBank(FilterBankConfig())(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match="sigmas are"):
        FilterBankConfig(sigmas=(1.0, 0.0))

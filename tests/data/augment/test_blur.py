import numpy as np
import torch
from em_data.augment.blur import blur
from scipy import ndimage


def test_blur_is_scipys_and_each_slice_has_its_own():
    slices = np.random.default_rng(0).random((3, 40, 50))
    sigma = [0.0, 0.7, 2.0]
    found = blur(torch.from_numpy(slices), torch.tensor(sigma, dtype=torch.float64), 2.0)
    assert np.abs(found[0].numpy() - slices[0]).max() == 0
    for image, own, s in zip(slices[1:], found[1:].numpy(), sigma[1:], strict=True):
        # Zeros beyond the border, divided by the blurred ones: weights inside sum to 1.
        truth, ones = (
            ndimage.gaussian_filter(a, s, mode="constant", radius=6)
            for a in (image, np.ones_like(image))
        )
        np.testing.assert_allclose(own, truth / ones, atol=1e-12)


def test_an_even_image_stays_even_to_its_border():
    even = torch.full((2, 9, 31), 0.3)
    torch.testing.assert_close(blur(even, torch.tensor([3.0, 0.5]), 3.0), even)

import math

import numpy as np
import pytest
import torch
from em_losses import charbonnier, ms_ssim, ssim
from em_losses.restoration import SCALES
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)


def pair(*shape, noise=0.1, dtype=torch.float64):
    """A smooth image and a noisy one of it."""
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(shape, generator=random, dtype=torch.float64)
    truth = torch.nn.functional.avg_pool2d(truth, 5, 1, 2)
    noisy = truth + noise * torch.randn(shape, generator=random, dtype=torch.float64)
    return truth.to(dtype), noisy.to(dtype)


def slowly(restored, truth, keep, epsilon):
    """Charbonnier's penalty, pixel by pixel in Python's float64."""
    values = zip(*(one.flatten().tolist() for one in (restored, truth, keep)), strict=True)
    terms = [math.sqrt((r - t) ** 2 + epsilon**2) - epsilon for r, t, k in values if k]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
def test_charbonnier_is_what_the_formula_says(epsilon, dtype, rtol):
    truth, restored = pair(2, 1, 9, 11, dtype=dtype)
    every, keep = torch.ones(truth.shape), torch.rand(truth.shape) < 0.4
    for where, kept in ((None, every), (keep, keep)):
        got = charbonnier(restored, truth, where, epsilon=epsilon)
        want = slowly(restored, truth, kept, epsilon)
        torch.testing.assert_close(got.item(), want, rtol=rtol, atol=0)


def test_small_differences_keep_their_digits():
    """√(d² + ε²) − ε as it is written has none of them left in float32."""
    got = charbonnier(torch.full((1, 1, 2, 2), 1e-6), torch.zeros(1, 1, 2, 2))
    torch.testing.assert_close(got.item(), math.hypot(1e-6, 1e-3) - 1e-3, rtol=1e-5, atol=0)


def test_what_is_left_out_has_no_part_in_it():
    truth, restored = pair(3, 2, 8, 8)
    where = torch.rand(3, 1, 8, 8) < 0.5  # one for all channels
    want = charbonnier(restored, truth, where)
    truth[~where.expand_as(truth)] = math.nan
    restored.requires_grad_()
    got = charbonnier(restored, truth, where)
    torch.testing.assert_close(got, want)
    got.backward()
    left_out = ~where.expand_as(truth)
    assert not restored.grad[left_out].any() and restored.grad[~left_out].all()
    assert charbonnier(restored, truth, torch.zeros(3, 1, 8, 8, dtype=torch.bool)).item() == 0


def test_gradients_are_those_of_the_values():
    truth, restored = pair(2, 1, 24, 23, noise=0.02)
    where = torch.rand(2, 1, 24, 23) < 0.5
    restored.requires_grad_()
    for loss in (
        lambda x: charbonnier(x, truth, where),
        lambda x: ssim(x, truth),
        lambda x: ms_ssim(x, truth),
    ):
        torch.autograd.gradcheck(loss, (restored,), fast_mode=True)


def test_two_ranks_are_one_batch(two_ranks):
    truth, restored = pair(8, 1, 6, 6)
    where = torch.rand(8, 1, 6, 6) < torch.linspace(0.1, 0.9, 8)[:, None, None, None]
    torch.testing.assert_close(
        two_ranks(charbonnier, restored, truth, where), charbonnier(restored, truth, where)
    )


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("size", [(11, 11), (40, 33)])
def test_ssim_equals_scikit_image(size, data_range):
    a, b = (one * data_range for one in pair(3, 1, *size))
    _, maps = zip(
        *(
            structural_similarity(
                x[0].numpy(),
                y[0].numpy(),
                data_range=data_range,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )
            for x, y in zip(a, b, strict=True)
        ),
        strict=True,
    )
    # scikit-image mirrors at the borders; these windows lie within.
    want = torch.tensor([np.mean(one[5:-5, 5:-5]) for one in maps])
    torch.testing.assert_close(ssim(a, b, data_range=data_range), want, rtol=1e-10, atol=1e-12)


def by_torchmetrics(a, b, **wanted):
    """Its SSIM of float64, which mirrors at the borders: (mean, what was wanted beside it)."""
    return structural_similarity_index_measure(
        a.double(), b.double(), data_range=1.0, reduction="none", **wanted
    )


def ssim_within(a, b):
    """The mean over windows that lie within the image."""
    return by_torchmetrics(a, b, return_full_image=True)[1][..., 5:-5, 5:-5].mean((1, 2, 3))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_ssim_equals_torchmetrics(dtype, rtol):
    a, b = pair(3, 2, 40, 33, dtype=dtype)
    torch.testing.assert_close(ssim(a, b), ssim_within(a, b).to(dtype), rtol=rtol, atol=0)
    torch.testing.assert_close(ssim(b, a), ssim(a, b))


@pytest.mark.parametrize(
    ("size", "scales"),
    [((176, 180), 5), ((175, 200), 4), ((57, 44), 3), ((43, 90), 2), ((21, 11), 1)],
)
def test_ms_ssim_is_the_product_of_what_torchmetrics_says(size, scales):
    """Of as many scales as the image has room for, whose weights add up to 1."""
    whole = pair(2, 1, *size)
    a, b, want = *whole, 1.0
    for weight in SCALES[:scales]:
        _, contrast = by_torchmetrics(a, b, return_contrast_sensitivity=True)
        last = ssim_within(a, b)
        factor = last if weight == SCALES[scales - 1] else contrast
        want = want * factor ** (weight / sum(SCALES[:scales]))
        a, b = (  # halved by means, without what is odd
            sum(one[..., i : n - n % 2 : 2, j : m - m % 2 : 2] for i in (0, 1) for j in (0, 1)) / 4
            for one in (a, b)
            for n, m in [one.shape[-2:]]
        )
    assert want.max() < 0.99
    torch.testing.assert_close(ms_ssim(*whole), want, rtol=1e-9, atol=0)
    if size == (176, 180):  # where nothing is mirrored but the last scale
        theirs = multiscale_structural_similarity_index_measure(*whole, data_range=1.0)
        torch.testing.assert_close(ms_ssim(*whole).mean(), theirs, rtol=0.02, atol=0)


def test_fewer_scales_when_asked_for():
    a, b = pair(2, 1, 64, 64)
    torch.testing.assert_close(ms_ssim(a, b, scales=1), ssim(a, b))
    assert (ms_ssim(a, b, scales=2) - ms_ssim(a, b)).abs().min() > 1e-3


def test_opposite_images_have_a_value_and_a_slope():
    """Where structure is inverted the factors are negative, and a root of them would be NaN."""
    truth, _ = pair(1, 1, 64, 64)
    inverted = (1 - truth).requires_grad_()
    assert ssim(inverted, truth).item() < 0
    found = ms_ssim(inverted, truth)
    found.sum().backward()
    assert 0 < found.item() < 1e-3 and inverted.grad.isfinite().all()


def test_reduced_precision_changes_nothing():
    a, b = pair(2, 1, 48, 48, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ms_ssim(a, b), ms_ssim(a.clone(), b.clone()))
        rough = ms_ssim(a, b)
    torch.testing.assert_close(rough, ms_ssim(a, b))


def test_bad_input_is_named():
    a, b = pair(1, 1, 16, 16)
    for call, message in (
        (lambda: charbonnier(a, b[..., 1:]), "wanted the same"),
        (lambda: charbonnier(a, b, epsilon=0), "epsilon is 0"),
        (
            lambda: charbonnier(a, b, torch.ones(1, 1, 8, 8) > 0),
            "or 1 instead of some of its sides",
        ),
        (lambda: ssim(a[..., :10], b[..., :10]), "at least 11 px"),
        (lambda: ms_ssim(a[0], b[0]), r"wanted \(B, C, Y, X\)"),
        (lambda: ssim(a, b, data_range=0), "data_range is 0"),
        (lambda: ms_ssim(a, b, scales=6), "scales is 6; wanted 1 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"where is torch.float64; wanted bool"):
        charbonnier(a, b, a)

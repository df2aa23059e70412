import pytest
import torch
from em_losses import (
    gradient_error,
    patch_targets,
    plain_reconstruction_error,
    reconstruction_error,
)

PATCH = (2, 4, 8)


def drawn(kind=torch.uint8, predicted=torch.float32):
    torch.manual_seed(0)
    volume = torch.randint(0, 256, (2, 1, 4, 8, 24)).to(kind)
    tokens = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    prediction = torch.randn(2, 5, 64, dtype=predicted, requires_grad=True)
    return prediction, volume, tokens


def targets(volume, tokens, scale):
    """Patch by patch in float64."""
    found = []
    for sample, names in zip(volume[:, 0].double() * scale, tokens.tolist(), strict=True):
        for name in names:
            i, j, k = name // 6, name // 3 % 2, name % 3
            patch = sample[2 * i : 2 * i + 2, 4 * j : 4 * j + 4, 8 * k : 8 * k + 8].flatten()
            found.append((patch - patch.mean()) / (patch.var() + 1e-6).sqrt())
    return torch.stack(found).view(len(tokens), -1, 64)


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32, torch.float64])
@pytest.mark.parametrize("predicted", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("function", [reconstruction_error, plain_reconstruction_error])
def test_value_and_gradient_against_float64(function, kind, predicted):
    prediction, volume, tokens = drawn(kind, predicted)
    found = function(prediction, volume, PATCH, tokens=tokens, scale=1 / 255)
    (gradient,) = torch.autograd.grad(found, prediction)
    exact = prediction.detach().double().requires_grad_()
    wanted = (exact - targets(volume, tokens, 1 / 255)).square().mean()
    (wanted_gradient,) = torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    exactness = 1e-2 if predicted == torch.bfloat16 else 1e-5
    torch.testing.assert_close(
        gradient.double(), wanted_gradient, rtol=exactness, atol=exactness / 100
    )


def test_brightness_and_contrast_do_not_matter():
    prediction, volume, tokens = drawn(torch.float32)
    settings = {"tokens": tokens, "scale": 1 / 255}
    plain = reconstruction_error(prediction, volume, PATCH, **settings)
    changed = reconstruction_error(prediction, 0.4 * volume + 17, PATCH, **settings)
    torch.testing.assert_close(plain, changed, rtol=1e-3, atol=1e-4)


def test_gradient_error_against_its_formula_and_ignores_the_mean():
    prediction, volume, tokens = drawn()
    found = gradient_error(prediction, volume, PATCH, tokens=tokens, scale=1 / 255)
    error = (prediction.double() - targets(volume, tokens, 1 / 255)).view(2, 5, *PATCH)
    parts = [error.diff(dim=axis).square().mean() for axis in (2, 3, 4)]
    torch.testing.assert_close(found.double(), sum(parts) / 3, rtol=1e-5, atol=1e-6)
    lifted = gradient_error(prediction + 3, volume, PATCH, tokens=tokens, scale=1 / 255)
    torch.testing.assert_close(found, lifted, rtol=1e-4, atol=1e-4)
    flat = prediction[..., :32].contiguous()
    thin = gradient_error(flat, volume[:, :, :2, :, :], (1, 4, 8), tokens=tokens % 12)
    assert bool(thin.isfinite())
    with pytest.raises(ValueError, match="no neighbours"):
        gradient_error(prediction[..., :1], volume, (1, 1, 1), tokens=tokens)


def test_targets_undo(  # what pictures are made from
):
    _, volume, tokens = drawn()
    target, mean, variance = patch_targets(volume, PATCH, tokens=tokens, scale=1 / 255)
    back = target * (variance[..., None] + 1e-6).sqrt() + mean[..., None]
    torch.testing.assert_close(
        target.double(), targets(volume, tokens, 1 / 255), rtol=1e-4, atol=1e-5
    )
    assert back.min() >= -1e-5 and back.max() <= 1 + 1e-5


def test_what_does_not_fit_is_refused():
    prediction, volume, tokens = drawn()
    with pytest.raises(ValueError, match="multiples of the patch"):
        plain_reconstruction_error(prediction, volume, (3, 4, 8), tokens=tokens)
    with pytest.raises(ValueError, match="prediction has shape"):
        plain_reconstruction_error(prediction[..., 1:], volume, PATCH, tokens=tokens)

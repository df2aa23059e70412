import math

import numpy as np
import pytest
import torch
from em_losses import (
    EntropySums,
    entropy_of_mean,
    entropy_sums,
    entropy_sums_and_probabilities,
    kernels_in_use,
    mean_entropy,
    plain_entropy_sums,
)
from scipy.special import entr, softmax


def reference(logits, temperature=1.0, mask=None):
    """The sums in float64 numpy, sample by sample."""
    p = softmax(logits.double().numpy() / temperature, axis=1)
    keep = np.ones(p[:, 0].shape, bool) if mask is None else mask.numpy()
    entropy = (entr(p).sum(1) * keep).sum()
    axes = tuple(range(2, p.ndim))
    return entropy, (p * keep[:, None]).sum(axes), keep.sum(tuple(range(1, keep.ndim)))


@pytest.fixture(params=[entropy_sums, plain_entropy_sums], ids=["used", "plain"])
def sums(request):
    """The function that the package uses, compiled where possible, and the plain one."""
    return request.param


@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 50, 33), (1, 2, 3, 4, 5), (6, 4)])
@pytest.mark.parametrize("sigma", [1.0, 30.0])
def test_sums_equal_the_reference(sums, shape, sigma):
    torch.manual_seed(0)
    logits = sigma * torch.randn(shape)
    mask = torch.rand(shape[0], *shape[2:]) > 0.3
    for chosen in (None, mask):
        entropy, marginal, pixels = reference(logits, 0.7, chosen)
        got = sums(logits, temperature=0.7, mask=chosen)
        assert float(got.entropy) == pytest.approx(entropy, rel=1e-5, abs=1e-4)
        np.testing.assert_allclose(got.marginal, marginal.sum(0), rtol=1e-5, atol=1e-4)
        assert float(got.pixels) == pixels.sum()
        each = sums(logits, temperature=0.7, mask=chosen, per_sample=True)
        np.testing.assert_allclose(each.marginal, marginal, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(each.pixels, pixels)


def test_gradients_equal_numerical_ones(sums):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 3, 3) > 0.3

    def loss(x):
        found = EntropySums(*sums(x, temperature=0.5, mask=mask))
        return mean_entropy(found) - 2 * entropy_of_mean(found)

    assert torch.autograd.gradcheck(loss, logits)


def test_probabilities_come_with_the_same_sums_and_carry_gradients():
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    sums, p = entropy_sums_and_probabilities(logits, temperature=0.5)
    for got, expected in zip(sums, entropy_sums(logits, temperature=0.5), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(p, (logits / 0.5).softmax(1))
    weights = torch.randn_like(p)
    (p * weights).sum().backward()
    twin = logits.detach().clone().requires_grad_()
    ((twin / 0.5).softmax(1) * weights).sum().backward()
    torch.testing.assert_close(logits.grad, twin.grad)


@pytest.mark.parametrize("plain", [False, True])
def test_half_logits_over_a_small_temperature_are_probabilities(monkeypatch, plain):
    if plain:
        monkeypatch.setattr("em_losses.entropy.compiled", lambda stem, tensor: None)
    logits = torch.tensor([[[-30.0], [0.0], [40.0]]]).half()  # 40 / 1e-4 is more than half can hold
    _, p = entropy_sums_and_probabilities(logits, temperature=1e-4)
    assert p.dtype == torch.float16 and p.flatten().tolist() == [0, 0, 1]


def test_sums_of_parts_add_up_to_the_whole():
    logits = torch.randn(6, 5, 8, 8)
    parts = [entropy_sums(part) for part in logits.split(2)]
    whole = entropy_sums(logits)
    for name in EntropySums._fields:
        torch.testing.assert_close(sum(getattr(p, name) for p in parts), getattr(whole, name))
    # The entropy of the mean of means is that of the global batch only through the sums.
    added = EntropySums(*(sum(fields) for fields in zip(*parts, strict=True)))
    torch.testing.assert_close(entropy_of_mean(added), entropy_of_mean(whole))


def test_reduce_is_applied_to_every_sum():
    sums = entropy_sums(torch.randn(2, 5, 8))
    torch.testing.assert_close(entropy_of_mean(sums, reduce=lambda x: 2 * x), entropy_of_mean(sums))
    torch.testing.assert_close(mean_entropy(sums, reduce=lambda x: 2 * x), mean_entropy(sums))


def test_extremes():
    k = 8
    uniform = entropy_sums(torch.zeros(1, k, 4, 4))
    assert float(mean_entropy(uniform)) == pytest.approx(math.log(k))
    one_class = torch.zeros(1, k, 16)
    one_class[:, 3] = 100
    decided = entropy_sums(one_class)
    assert float(mean_entropy(decided)) == pytest.approx(0, abs=1e-6)
    assert float(entropy_of_mean(decided)) == pytest.approx(0, abs=1e-6)
    spread = entropy_sums(100 * torch.eye(k)[None])
    assert float(mean_entropy(spread)) == pytest.approx(0, abs=1e-6)
    assert float(entropy_of_mean(spread)) == pytest.approx(math.log(k), rel=1e-6)


def test_a_class_of_probability_0_has_a_finite_gradient(sums):
    logits = torch.tensor([[[0.0, 1.0], [0.5, 0.0], [-200.0, -200.0]]], requires_grad=True)
    entropy_of_mean(EntropySums(*sums(logits))).backward()
    two = logits.detach()[:, :2].requires_grad_()
    entropy_of_mean(EntropySums(*sums(two))).backward()
    torch.testing.assert_close(logits.grad[:, :2], two.grad)
    assert not logits.grad[:, 2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_entropy_of_a_mean_is_that_of_torch_to_the_bit(dtype):
    marginal = (9 * torch.randn(7, 50, dtype=dtype)).softmax(1).requires_grad_()
    twin = marginal.detach().clone().requires_grad_()
    ours = entropy_of_mean(EntropySums(marginal.sum(), marginal, marginal.new_ones(7)))
    theirs = torch.special.entr(twin).sum(1)
    ours.sum().backward()
    theirs.sum().backward()
    assert torch.equal(ours, theirs) and torch.equal(marginal.grad, twin.grad)


def test_bad_input_is_named(sums):
    logits = torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match="mask"):
        sums(logits, mask=torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature"):
        sums(logits, temperature=-1.0)
    with pytest.raises(ValueError, match="logits"):
        sums(torch.randn(2, 1, 3))
    with pytest.raises(TypeError, match="logits"):
        sums(torch.ones(2, 3, 4, dtype=torch.int64))


@pytest.mark.skipif(not kernels_in_use(), reason="em-kernels is not in use here")
def test_compiled_and_plain_agree():
    torch.manual_seed(0)
    a = (3 * torch.randn(2, 50, 31, 17)).requires_grad_()
    b = a.detach().clone().requires_grad_()
    for x, function in ((a, entropy_sums), (b, plain_entropy_sums)):
        found = EntropySums(*function(x))
        (mean_entropy(found) - entropy_of_mean(found)).backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5 * float(b.grad.abs().max()), rtol=0)

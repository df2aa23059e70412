import math

import numpy as np
import pytest
import torch
from em_losses import cross_entropy, entropy_floor, entropy_of_mean, entropy_sums
from scipy.special import log_softmax


def test_cross_entropy_equals_the_reference():
    torch.manual_seed(0)
    target, logits = torch.randn(2, 5, 3, 4).softmax(1), 4 * torch.randn(2, 5, 3, 4)
    expected = -(target.double().numpy() * log_softmax(logits.double().numpy(), 1)).sum(1).mean()
    assert float(cross_entropy(target, logits)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"\(2, 5, 3, 3\)"):
        cross_entropy(target, logits[..., :3])


def test_gradients_reach_target_and_prediction():
    target = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, q: cross_entropy(t.softmax(1), q), (target, logits))


def test_bound_is_tight_for_a_perfect_prediction_and_zero_for_an_ignorant_one():
    k = 6
    codes = 200 * torch.eye(k)[torch.arange(600) % k].T[None]  # (1, K, 600), equally often
    spread = entropy_of_mean(entropy_sums(codes))
    target = codes.softmax(1)
    assert float(spread - cross_entropy(target, codes)) == pytest.approx(math.log(k), rel=1e-5)
    ignorant = torch.zeros_like(codes)
    assert float(spread - cross_entropy(target, ignorant)) == pytest.approx(0, abs=1e-5)


def test_floor_pushes_below_and_lets_go_above():
    low, high = (torch.tensor(h, requires_grad=True) for h in (2.0, 3.9))
    for h in (low, high):
        entropy_floor(h, floor=3.4).backward()
    np.testing.assert_allclose([low.grad, high.grad], [-1, 0])
    assert entropy_floor(low, floor=3.4).item() == pytest.approx(1.4)

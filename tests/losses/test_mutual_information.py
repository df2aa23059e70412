import math

import numpy as np
import pytest
import torch
from em_losses import (
    cross_entropy,
    diversity,
    entropy_floor,
    entropy_of_mean,
    entropy_sums,
    gain_over_mean,
    iic,
    information_bound,
    symmetric_cross_entropy,
)
from scipy.special import entr, log_softmax, softmax


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


def logits(*shape, scale=2.0):
    return scale * torch.randn(shape, dtype=torch.float64)


def test_targets_may_be_given_as_logits():
    target, prediction = logits(2, 5, 9), logits(2, 5, 9)
    given = cross_entropy(target, prediction, target_is_logits=True)
    torch.testing.assert_close(given, cross_entropy(target.softmax(1), prediction))


def test_symmetric_cross_entropy_equals_the_reference():
    first, second = logits(2, 5, 3, 4), logits(2, 5, 3, 4)
    a, b = first.numpy(), second.numpy()
    there = -(softmax(a, 1) * log_softmax(b, 1)).sum(1).mean()
    back = -(softmax(b, 1) * log_softmax(a, 1)).sum(1).mean()
    got = symmetric_cross_entropy(first, second)
    assert float(got) == pytest.approx((there + back) / 2, rel=1e-12)


def test_information_bound_equals_the_reference_and_never_exceeds_the_information():
    target, prediction = logits(2, 5, 30), logits(2, 5, 30)
    p, log_q = softmax(target.numpy(), 1), log_softmax(prediction.numpy(), 1)
    expected = entr(p.mean((0, 2))).sum() + (p * log_q).sum(1).mean()
    for given, is_logits in ((target, True), (target.softmax(1), False)):
        got = information_bound(given, prediction, target_is_logits=is_logits)
        assert float(got) == pytest.approx(expected, rel=1e-12)
    # With the context y = the pixel itself the information is H(p̄) − mean H(p).
    most = float(information_bound(target, target, target_is_logits=True))
    assert most == pytest.approx(entr(p.mean((0, 2))).sum() - entr(p).sum(1).mean(), rel=1e-12)
    assert expected < most


def test_gain_is_what_goes_beyond_the_mean_of_the_context():
    target = torch.eye(3)[:, :, None].expand(3, 3, 4)  # every class once
    mean = torch.full((3, 3, 4), 1 / 3).log()
    exact = (target + 1e-6).log()
    assert float(gain_over_mean(target, exact, mean)) == pytest.approx(math.log(3), rel=1e-4)
    assert float(gain_over_mean(target, mean, mean)) == 0
    assert float(gain_over_mean(target, -exact, mean)) < 0


def test_diversity_is_a_floor_and_the_mean_entropy():
    x = logits(2, 20, 50)
    p = softmax(x.numpy(), 1)
    spread, certain = entr(p.mean((0, 2))).sum(), entr(p).sum(1).mean()
    assert spread > math.log(8)
    got = diversity(entropy_sums(x), sharpen_weight=0.5)
    assert float(got) == pytest.approx(0.5 * certain, rel=1e-10)
    got = diversity(entropy_sums(x), classes_at_least=20)
    assert float(got) == pytest.approx(math.log(20) - spread + certain, rel=1e-10)


def test_iic_equals_the_reference():
    first, second = logits(3, 4, 6, 5).softmax(1), logits(3, 4, 6, 5).softmax(1)
    p, q = (x.numpy().transpose(1, 0, 2, 3).reshape(4, -1) for x in (first, second))
    joint = p @ q.T / p.shape[1]
    joint = (joint + joint.T) / 2
    rows, columns = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    expected = -(joint * (np.log(joint) - np.log(rows) - np.log(columns))).sum()
    assert float(iic(first, second)) == pytest.approx(expected, rel=1e-12)
    weighted = -(joint * (np.log(joint) - 2 * np.log(rows) - 2 * np.log(columns))).sum()
    assert float(iic(first, second, marginal_weight=2)) == pytest.approx(weighted, rel=1e-12)


def test_iic_of_decided_codes_has_gradients():
    """Classes that nobody uses have log 0."""
    one = torch.zeros(2, 4, 9)
    one[:, 1] = 1
    one.requires_grad_()
    loss = iic(one, one)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and one.grad.isfinite().all()


def test_bound_of_a_class_that_nobody_uses_has_gradients():
    target = torch.tensor([[[0.0, 2.0], [0.5, 0.0], [-200.0, -200.0]]], requires_grad=True)
    information_bound(target, torch.randn(1, 3, 2), target_is_logits=True).backward()
    assert target.grad.isfinite().all() and target.grad[:, :2].all()


def test_codes_without_places_are_pixels_too():
    first, second = logits(7, 4).softmax(1), logits(7, 4).softmax(1)
    torch.testing.assert_close(iic(first, second), iic(first[..., None], second[..., None]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: symmetric_cross_entropy(a, b),
        lambda a, b: information_bound(a.softmax(1), b),
        lambda a, b: information_bound(a, b, target_is_logits=True),
        lambda a, b: gain_over_mean(a.softmax(1), b, b.flip(1)),
        lambda a, b: diversity(entropy_sums(a), classes_at_least=3) + b.sum() * 0,
        lambda a, b: iic(a.softmax(1), b.softmax(1)),
    ],
    ids=["symmetric", "bound", "bound of logits", "gain", "diversity", "iic"],
)
def test_gradients_of_all_equal_numerical_ones(loss):
    torch.manual_seed(0)
    pair = (logits(2, 3, 4).requires_grad_(), logits(2, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(loss, pair)


@pytest.mark.parametrize("loss", [symmetric_cross_entropy, information_bound, cross_entropy, iic])
def test_two_ranks_equal_the_global_batch(two_ranks, loss):
    first, second = logits(5, 4, 6), logits(5, 4, 6)
    if loss is not symmetric_cross_entropy:
        first = first.softmax(1)
    if loss is iic:
        second = second.softmax(1)
    torch.testing.assert_close(two_ranks(loss, first, second), loss(first, second))


def test_two_ranks_share_one_diversity_and_one_gain(two_ranks):
    x, target, mean = logits(5, 12, 6), logits(5, 12, 6).softmax(1), logits(5, 12, 6)

    def diverse(x, **options):
        return diversity(entropy_sums(x), classes_at_least=12, **options)

    torch.testing.assert_close(two_ranks(diverse, x), diverse(x))
    torch.testing.assert_close(
        two_ranks(gain_over_mean, target, x, mean), gain_over_mean(target, x, mean)
    )

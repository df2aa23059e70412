import math

import numpy as np
import pytest
import torch
from em_losses import info_nce
from scipy.special import log_softmax


def reference(first, second, temperature, symmetric):
    a, b = (x.double().numpy() for x in (first, second))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    logits = a @ b.T / temperature
    there, back = (-np.diag(log_softmax(x, 1)).mean() for x in (logits, logits.T))
    return (there + back) / 2 if symmetric else there


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 0.005])  # the last one needs a running maximum
def test_it_equals_the_reference(temperature, symmetric):
    torch.manual_seed(0)
    first, second = 3 * torch.randn(40, 8), torch.randn(40, 8)
    got = info_nce(first, second, temperature=temperature, symmetric=symmetric)
    assert float(got) == pytest.approx(reference(first, second, temperature, symmetric), rel=1e-4)


def test_opposite_pairs_stay_finite():
    first = torch.randn(64, 8)
    for temperature in (0.1, 0.02, 0.001):
        loss = info_nce(first, -first, temperature=temperature)
        assert float(loss) == pytest.approx(reference(first, -first, temperature, True), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 0.02])
def test_gradients_equal_numerical_ones(temperature):
    torch.manual_seed(0)
    pair = [torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for symmetric in (True, False):
        assert torch.autograd.gradcheck(
            lambda a, b, s=symmetric: info_nce(a, b, temperature=temperature, symmetric=s), pair
        )


def test_extremes():
    apart = torch.eye(8)
    assert float(info_nce(apart, apart, temperature=0.05)) < 1e-6
    same = torch.ones(8, 4)
    assert float(info_nce(same, same)) == pytest.approx(math.log(8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_two_ranks_equal_the_global_batch(symmetric):
    torch.manual_seed(0)
    whole = [torch.randn(32, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = info_nce(*whole, symmetric=symmetric)
    expected.backward()
    halves = [list(x.detach().split(16)) for x in whole]
    leaves = [[part.requires_grad_() for part in parts] for parts in halves]

    def unit(x, sharp):
        return torch.nn.functional.normalize(x, dim=1) * sharp

    sums = []
    for rank in (0, 1):
        # What an all-gather would bring: the normalised vectors of both ranks. The first ones carry
        # the sharpness already.
        both = {
            10.0: torch.cat([unit(x, 10.0) for x in leaves[0]]),
            1.0: torch.cat([unit(x, 1.0) for x in leaves[1]]),
        }
        seen = []

        def reduce(x, seen=seen):
            seen.append(x)
            return x

        info_nce(
            leaves[0][rank],
            leaves[1][rank],
            symmetric=symmetric,
            gather=lambda x, both=both: both[round(float(x.detach()[0].norm()), 3)],
            reduce=reduce,
        )
        sums.append(seen)
    total = (sums[0][0] + sums[1][0]) / (sums[0][1] + sums[1][1])
    torch.testing.assert_close(total, expected)
    total.backward()
    for x, parts in zip(whole, leaves, strict=True):
        torch.testing.assert_close(torch.cat([p.grad for p in parts]), x.grad)


def test_half_precision_is_computed_in_single():
    first, second = torch.randn(32, 8), torch.randn(32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(first, second)
    torch.testing.assert_close(loss, info_nce(first, second), rtol=0, atol=0)
    assert info_nce(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(4, 3\), second \(5, 3\)"):
        info_nce(torch.rand(4, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match="temperature is 0"):
        info_nce(torch.rand(4, 3), torch.rand(4, 3), temperature=0)

import numpy as np
import pytest
import torch
from em_losses import DivergenceSums, divergence_sums, kernels_in_use, plain_divergence_sums
from scipy.special import entr, log_softmax, softmax


@pytest.fixture(params=[divergence_sums, plain_divergence_sums], ids=["used", "plain"])
def sums(request):
    """The function that the package uses, compiled where possible, and the plain one."""
    return request.param


@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (6, 5), (2, 5, 0)])
@pytest.mark.parametrize("target_is_logits", [True, False])
def test_sums_equal_the_reference(sums, target_is_logits, shape):
    torch.manual_seed(0)
    target, logits = 3 * torch.randn(shape), 4 * torch.randn(shape)
    p, log_q = softmax(target.double().numpy(), 1), log_softmax(logits.double().numpy(), 1)
    q, space = np.exp(log_q), (0, *range(2, len(shape)))
    got = sums(
        target if target_is_logits else target.softmax(1), logits, target_is_logits=target_is_logits
    )
    expected = DivergenceSums(
        -(p * log_q).sum(),
        entr(q).sum(),
        q.sum(space),
        entr(p).sum(),
        p.sum(space),
        q.size // 5,
    )
    for name, a, b in zip(DivergenceSums._fields, got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("target_is_logits", [True, False])
def test_gradients_equal_numerical_ones(sums, target_is_logits):
    torch.manual_seed(0)
    pair = [torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(target, logits):
        target = target if target_is_logits else target.softmax(1)
        found = DivergenceSums(*sums(target, logits, target_is_logits=target_is_logits))
        marginals = (found.marginal.square() - found.target_marginal.square()).sum()
        return found.cross_entropy + found.entropy - 2 * found.target_entropy + marginals

    assert torch.autograd.gradcheck(loss, pair)


def test_sums_of_parts_add_up_to_the_whole():
    target, logits = torch.randn(4, 5, 9).softmax(1), torch.randn(4, 5, 9)
    whole = divergence_sums(target, logits)
    parts = [divergence_sums(t, q) for t, q in zip(target.split(2), logits.split(2), strict=True)]
    for name in DivergenceSums._fields:
        torch.testing.assert_close(sum(getattr(p, name) for p in parts), getattr(whole, name))


@pytest.mark.skipif(not kernels_in_use(), reason="em-kernels is not in use here")
def test_targets_of_another_type_are_served_by_the_plain_formula():
    target, logits = torch.randn(2, 5, 9).softmax(1), torch.randn(2, 5, 9)
    mixed = divergence_sums(target, logits.bfloat16())
    expected = plain_divergence_sums(target, logits.bfloat16().float())
    torch.testing.assert_close(mixed.cross_entropy, expected.cross_entropy)


def test_bad_input_is_named(sums):
    with pytest.raises(ValueError, match=r"\(2, 5, 9\), logits \(2, 5, 8\)"):
        sums(torch.randn(2, 5, 9), torch.randn(2, 5, 8))
    with pytest.raises(TypeError, match="floating"):
        sums(torch.ones(2, 5, 9), torch.ones(2, 5, 9, dtype=torch.int64))

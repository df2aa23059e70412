import numpy as np
import pytest
import torch
from em_losses import cross_sample_variance, equivariance


def quarter(maps):
    return maps.rot90(1, (2, 3))


def test_variance_equals_the_reference():
    p = torch.randn(5, 4, 3, 6).softmax(1)
    expected = p.double().numpy().var(0).sum(0).mean()
    assert float(cross_sample_variance(p)) == pytest.approx(expected, rel=1e-5)


def test_variance_of_stripes_that_all_samples_share_is_zero():
    stripes = torch.eye(4).repeat(1, 2)[:, :, None].expand(4, 8, 8)
    assert float(cross_sample_variance(stripes.expand(6, 4, 8, 8))) == pytest.approx(0, abs=1e-7)
    different = torch.stack([stripes.roll(i, 1) for i in range(4)])
    assert float(cross_sample_variance(different)) == pytest.approx(1 - 1 / 4)


def test_equivariance_equals_the_reference():
    first, second = torch.rand(2, 3, 5, 5), torch.rand(2, 3, 5, 5)
    turned = np.rot90(first.double().numpy(), 1, (2, 3))
    expected = ((turned - second.double().numpy()) ** 2).sum(1).mean()
    assert float(equivariance(first, second, turn=quarter)) == pytest.approx(expected, rel=1e-5)
    assert float(equivariance(first, quarter(first), turn=quarter)) == 0
    apart = torch.eye(2)[:, :, None, None]
    assert float(equivariance(apart, apart.flip(0), turn=quarter)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_count_every_pixel_of_large_maps(dtype):
    first, second = (torch.rand(2, 2, 300, 300).softmax(1).to(dtype) for _ in range(2))
    expected = equivariance(first.double(), second.double(), turn=quarter)
    assert float(equivariance(first, second, turn=quarter)) == pytest.approx(
        float(expected), rel=1e-5
    )
    many = torch.rand(3000, 4, 2).softmax(1).to(dtype)
    expected = cross_sample_variance(many.double())
    assert float(cross_sample_variance(many)) == pytest.approx(float(expected), rel=1e-3)


def test_gradients_equal_numerical_ones():
    logits = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    other = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: cross_sample_variance(x.softmax(1)), logits)
    assert torch.autograd.gradcheck(
        lambda x, y: equivariance(x.softmax(1), y.softmax(1), turn=quarter), (logits, other)
    )


def test_two_ranks_equal_the_global_batch(two_ranks):
    p, q = torch.randn(5, 4, 3, 3).softmax(1), torch.randn(5, 4, 3, 3).softmax(1)
    torch.testing.assert_close(two_ranks(cross_sample_variance, p), cross_sample_variance(p))

    def loss(a, b, reduce):
        return equivariance(a, b, turn=quarter, reduce=reduce)

    torch.testing.assert_close(two_ranks(loss, p, q), equivariance(p, q, turn=quarter))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 3\), .* \(1, 2, 3, 4\)"):
        equivariance(torch.rand(1, 2, 3, 4), torch.rand(1, 2, 3, 4), turn=quarter)

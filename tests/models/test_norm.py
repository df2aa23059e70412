import pytest
import torch
from em_models import BatchNorm
from em_models.norm import share_norms
from torch import nn

TORCH = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 6), (2, 4, 3, 5, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_torchs_batch_norm_with_and_without_a_sum_over_processes(shape, affine):
    torch.manual_seed(0)
    theirs = TORCH[len(shape)](4, affine=affine).double()
    plain, shared = (BatchNorm(4, affine=affine).double() for _ in range(2))
    shared.reduce = lambda sums: sums  # of one process
    assert plain.state_dict().keys() == theirs.state_dict().keys()
    weight = torch.randn(shape).double()
    for step in range(3):
        x = (100 + 3 * torch.randn(shape)).double()  # far from zero: moments cancel
        inputs = [x.clone().requires_grad_() for _ in range(3)]
        for model, one in zip((theirs, plain, shared), inputs, strict=True):
            if step == 0 and affine:
                with torch.no_grad():
                    model.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
            (model(one) * weight).sum().backward()
        assert torch.equal(inputs[1].grad, inputs[0].grad)
        torch.testing.assert_close(inputs[2].grad, inputs[0].grad, rtol=0, atol=1e-10)
    for key, value in theirs.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value)
        torch.testing.assert_close(shared.state_dict()[key], value)
    for model in (plain, shared):
        model.eval()
        torch.testing.assert_close(model(x), theirs.eval()(x))


def test_low_precision_stays_low_outside_and_high_inside():
    norm = BatchNorm(2, affine=False)
    norm.reduce = lambda sums: sums
    x = 10 + torch.randn(64, 2, 8, 8)
    y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float().mean((0, 2, 3)), torch.zeros(2), atol=5e-3, rtol=0)


def test_one_value_leaves_the_running_variance_a_number():
    norm = BatchNorm(3)
    norm.reduce = lambda sums: sums
    norm(torch.randn(1, 3, 1, 1))
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.9))


def test_norms_of_others_become_ours_and_say_the_same():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.3))
    network = nn.Sequential(inner, nn.ReLU(), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4))
    x = 3 * torch.rand(2, 3, 5, 5)
    network(x)
    network.eval()
    before, keys = network(x), list(network.state_dict())
    share_norms(network)
    assert torch.equal(network(x), before) and list(network.state_dict()) == keys
    kinds = [type(m) for m in network.modules() if "Norm" in type(m).__name__]
    assert kinds == [BatchNorm, BatchNorm, nn.GroupNorm]
    assert inner[1].momentum == 0.3


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        BatchNorm(3)(torch.zeros(3))

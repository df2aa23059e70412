import pytest
import torch
from em_train.engine.finite import require_finite
from torch import nn


def test_weights_and_losses_must_be_numbers():
    networks = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.BatchNorm1d(3)})
    require_finite(networks, [{"loss": float("nan")}, {"loss": 0.5}, {"held_out": 1.0}])
    for loss in (float("nan"), float("inf"), None):
        with pytest.raises(FloatingPointError, match=r"loss of the last step.*lower optim\.lr"):
            require_finite(networks, [{"loss": 0.5}, {"loss": loss}])
    buffer = networks["b"].running_var
    buffer[1] = torch.inf
    with pytest.raises(
        FloatingPointError, match=r"1 of 7 tensors .* the first of them b\.running_var"
    ):
        require_finite(networks, [])

import copy

import pytest
import torch
from em_train.engine.device import choose_device, recompute
from torch import nn


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"run.device is cuda.*offers: cpu"):
        choose_device("cuda")


def test_every_process_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU: there are 2"):
        choose_device("cuda")


def test_recomputed_modules_compute_the_same_twice():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    thrifty, calls = copy.deepcopy(plain), []
    thrifty[0].register_forward_hook(lambda *_: calls.append("kept"))
    thrifty[1].forward = lambda x, forward=thrifty[1].forward: (calls.append(0), forward(x))[1]
    recompute([thrifty[1]])
    x = torch.randn(5, 3)
    for model in (plain, thrifty):
        model(x).sum().backward()
    assert calls.count(0) == 2 and calls.count("kept") == 1
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    twin = copy.deepcopy(thrifty)  # as a moving average is made
    with torch.no_grad():
        twin[0].weight.zero_()
    assert (
        torch.equal(thrifty(x), plain(x)) and twin.state_dict().keys() == plain.state_dict().keys()
    )

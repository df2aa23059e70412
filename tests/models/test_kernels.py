import importlib.util

import pytest
import torch
from em_models import kernels


@pytest.fixture
def choose(monkeypatch):
    """A function that decides anew with EM_KERNELS=value; afterwards everything is as it was."""

    def forget():
        kernels.kernels_in_use.cache_clear()
        kernels._devices.cache_clear()

    def decide(value):
        monkeypatch.setenv("EM_KERNELS", value)
        forget()
        return kernels.kernels_in_use()

    yield decide
    monkeypatch.undo()
    forget()


def test_plain_torch_can_be_forced(choose):
    assert choose("0") is False
    assert kernels.compiled_patches(torch.zeros(1)) is None


def test_insisting_and_mistakes(choose, monkeypatch):
    installed = importlib.util.find_spec("em_kernels") is not None
    assert choose("") is installed
    assert kernels.compiled_patches(torch.zeros(1, device="meta")) is None
    with pytest.raises(ValueError, match="EM_KERNELS is 'yes'"):
        choose("yes")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="em-kernels is not installed"):
        choose("1")

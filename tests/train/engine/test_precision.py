import pytest
import torch
from em_train.engine import precision
from torch import nn

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_forward_passes_compute_in_the_chosen_type(wanted, kind):
    with precision.autocast(wanted, CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == kind
    assert precision.grad_scaler(wanted, CPU).is_enabled() == (wanted == "fp16")


def test_auto_takes_what_a_gpu_has(monkeypatch):
    gpu = torch.device("cuda")
    for has, kind in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, has=has: has)
        assert precision.choose_type("auto", gpu) == kind


@pytest.mark.parametrize(
    ("has", "kind"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_takes_what_a_processor_has(monkeypatch, has, kind):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert precision.choose_type("auto", CPU) == kind


def test_tf32_is_a_choice():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for allowed, name in ((True, "tf32"), (False, "ieee")):
            precision.allow_tf32(allowed)
            assert torch.backends.cuda.matmul.fp32_precision == name
            assert torch.backends.cudnn.conv.fp32_precision == name
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
        torch.backends.cudnn.conv.fp32_precision = before

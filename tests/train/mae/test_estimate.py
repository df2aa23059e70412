import pytest
import torch
from em_models import DecoderConfig, Mae, MaeConfig, Vit3dConfig, count_parameters
from em_train.mae.estimate import estimate
from torch.utils.flop_counter import FlopCounterMode

CONFIG = MaeConfig(
    encoder=Vit3dConfig(width=48, depth=3, heads=4, patch_vx=(4, 8, 8)),
    decoder=DecoderConfig(width=24, depth=2, heads=2),
)


def test_counted_as_in_a_real_step():
    found = estimate(CONFIG, (16, 32, 32), 2)
    model = Mae(CONFIG)
    assert found.parameters == count_parameters(model)
    assert found.encoder_parameters == count_parameters(model.encoder)
    assert found.tokens == 4 * 4 * 4
    volume = torch.zeros(2, 1, 16, 32, 32)
    masks = model.draw(volume, [(0, 0), (0, 1)], seed=0)
    kept = {}

    def pack(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(volume, masks).square().mean()
    real = sum(size for place, size in kept.items() if place not in own)
    assert found.activation_bytes == pytest.approx(real, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        model(volume, masks).square().mean().backward()
    del loss
    assert 2 * found.flops == counter.get_total_flops()


def test_what_memory_depends_on():
    plain = estimate(CONFIG, (16, 32, 32), 4)
    half = estimate(CONFIG, (16, 32, 32), 4, kind=torch.bfloat16)
    again = estimate(CONFIG, (16, 32, 32), 4, recomputed=True)
    assert again.activation_bytes < 0.5 * plain.activation_bytes
    assert half.activation_bytes < plain.activation_bytes
    assert again.flops == plain.flops and again.parameters == plain.parameters
    assert "GFLOP a cube" in str(plain)

import dataclasses
import subprocess
import sys

import em_models
import pytest
import torch
import torch.nn.functional as F
from em_models import Vit3d, Vit3dConfig, Voxels, count_parameters, vit3d_size
from em_models.positions import rotary, sincos, token_places

CONFIG = Vit3dConfig(patch_vx=(2, 4, 4), width=48, depth=3, heads=4)


def model_of(**changes):
    torch.manual_seed(0)
    return Vit3d(dataclasses.replace(CONFIG, **changes)).eval()


def reference(model, volume, tokens, positions):
    """The same network written out in float64, one sample at a time."""
    state = {key: value.double() for key, value in model.state_dict().items()}

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    grid = [n // p for n, p in zip(volume.shape[2:], (2, 4, 4), strict=True)]
    places = token_places(grid, (2, 4, 4))
    cut = volume.double().view(-1, grid[0], 2, grid[1], 4, grid[2], 4)
    cut = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(volume), -1, 32)
    found = []
    for sample, own in zip(cut, tokens, strict=True):
        x = linear((sample[own] / 255 - 0.5) / 0.25, "embed")
        if positions == "sincos":
            x = x + sincos(places, 48).double()[own]
        for i in range(3):
            y = norm(x, f"blocks.{i}.norm1")
            q, k, v = linear(y, f"blocks.{i}.attention.qkv").view(-1, 3, 4, 12).permute(1, 2, 0, 3)
            if positions == "rotary":
                turn = rotary(places, 12)[own].to(torch.complex128)
                q, k = (
                    torch.view_as_real(
                        torch.view_as_complex(one.unflatten(-1, (6, 2))) * turn
                    ).flatten(-2)
                    for one in (q.contiguous(), k.contiguous())
                )
            mixed = (q @ k.mT / 12**0.5).softmax(-1) @ v
            x = x + linear(mixed.transpose(0, 1).reshape(-1, 48), f"blocks.{i}.attention.out")
            y = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
            x = x + linear(y, f"blocks.{i}.mlp.fc2")
        found.append(norm(x, "norm"))
    return torch.stack(found)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_against_the_formula_in_float64(positions):
    model = model_of(positions=positions)
    volume = torch.randint(0, 256, (2, 1, 4, 12, 8), dtype=torch.uint8)
    tokens = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    wanted = reference(model, volume, tokens, positions)
    with torch.no_grad():
        torch.testing.assert_close(model(volume, tokens).double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "rotary", "learned"])
@torch.no_grad()
def test_bytes_and_floats_are_the_same_and_registers_are_not_shown(positions):
    model = model_of(positions=positions, registers=2)
    volume = torch.randint(0, 256, (2, 1, 4, 8, 8), dtype=torch.uint8)
    scale, shift = torch.tensor([1 / 200, 1 / 100]), torch.tensor([-0.1, 0.2])
    image = volume.float() * scale.view(-1, 1, 1, 1, 1) + shift.view(-1, 1, 1, 1, 1)
    a, b = model(Voxels(volume, scale, shift)), model(image)
    assert a.shape == (2, 8, 48)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # The order in which tokens are named does not matter.
    order = torch.randperm(8).expand(2, -1)
    torch.testing.assert_close(model(image, order), b[:, order[0]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layers():
    model = model_of(registers=1)
    volume = torch.rand(1, 1, 4, 8, 12)
    found = model.get_intermediate_features(volume)
    assert list(found) == [0, 1, 2, 3]
    chosen = model.get_intermediate_features(volume, [-1, 1])
    assert torch.equal(chosen[-1], found[3]) and torch.equal(chosen[1], found[1])
    torch.testing.assert_close(model.norm(found[3]), model(volume))
    maps = model.features(volume, layer=1)
    assert maps.shape == (1, 48, 2, 2, 3)
    assert torch.equal(maps[0, :, 1, 0, 2], found[1][0, 6 + 2])
    with pytest.raises(ValueError, match=r"layer 4; there are 0 .* to 3"):
        model.features(volume, layer=4)
    # Layers after the last one asked for are not computed.
    model.blocks[1] = None
    model.get_intermediate_features(volume, [1])


def test_stochastic_depth_only_in_training():
    model = model_of(drop_path=0.9)
    volume = torch.rand(4, 1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(volume), model_of()(volume))
        model.train()
        assert not torch.equal(model(volume), model(volume))


def test_sizes_have_the_parameters_of_the_literature():
    sizes = {"tiny": 5.5e6, "small": 21.7e6, "base": 85.8e6, "large": 303e6}
    for name, wanted in sizes.items():
        with torch.device("meta"):
            found = count_parameters(Vit3d(vit3d_size(name)))
        assert found == pytest.approx(wanted, rel=0.03), name


def test_weights_travel(tmp_path):
    model = model_of(positions="learned", registers=1, token_nm=32.0)
    em_models.save(model, tmp_path)
    again = em_models.load(tmp_path)
    assert again.config == model.config
    volume = torch.randint(0, 256, (1, 1, 4, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(volume), model(volume))


def test_importing_leaves_timm_alone():
    code = "import sys, em_models; sys.exit(any(n in sys.modules for n in ('timm', 'torchvision')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="heads divide evenly"):
        Vit3dConfig(width=50, heads=4)
    with pytest.raises(ValueError, match="rotary positions turn pairs"):
        Vit3dConfig(width=36, heads=4, positions="rotary")
    with pytest.raises(ValueError, match="no size 'huge'"):
        vit3d_size("huge")
    with pytest.raises(ValueError, match="wanted multiples of the patch"):
        model_of()(torch.rand(1, 1, 3, 8, 8))

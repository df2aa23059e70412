import pytest
import torch
from em_losses import plain_reconstruction_error, reconstruction_error
from em_models import DecoderConfig, Mae, MaeConfig, Vit3dConfig, count_parameters, mae_size
from em_models.masks import Masks

CONFIG = MaeConfig(
    encoder=Vit3dConfig(patch_vx=(2, 4, 4), width=48, depth=2, heads=4),
    decoder=DecoderConfig(width=24, depth=1, heads=2),
)
KEYS = [(0, 0), (0, 1)]


def model_of(positions="sincos"):
    import dataclasses

    torch.manual_seed(0)
    encoder = dataclasses.replace(CONFIG.encoder, positions=positions, registers=1)
    return Mae(dataclasses.replace(CONFIG, encoder=encoder))


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_hidden_voxels_are_never_seen(positions):
    model = model_of(positions)
    volume = torch.randint(0, 256, (2, 1, 4, 16, 16), dtype=torch.uint8)
    masks = model.draw(volume, KEYS, seed=0)
    other = torch.randint(0, 256, volume.shape, dtype=torch.uint8)
    visible = torch.zeros(2, 32, dtype=torch.bool).scatter_(1, masks.visible, True)
    visible = visible.view(2, 1, 2, 4, 4)
    for axis, side in zip((2, 3, 4), (2, 4, 4), strict=True):
        visible = visible.repeat_interleave(side, axis)
    with torch.no_grad():
        found = model(volume, masks)
        assert torch.equal(found, model(torch.where(visible, volume, other), masks))
        assert not torch.equal(found, model(torch.where(visible, other, volume), masks))
    # What is predicted is told apart by place alone.
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_predictions_follow_their_tokens():
    model = model_of().eval()
    volume = torch.rand(2, 1, 4, 16, 16)
    masks = model.draw(volume, KEYS, seed=0)
    turned = Masks(masks.visible.flip(1), masks.hidden.flip(1))
    with torch.no_grad():
        torch.testing.assert_close(
            model(volume, turned), model(volume, masks).flip(1), rtol=1e-4, atol=1e-5
        )


def test_it_learns_and_every_parameter_has_a_gradient():
    model = model_of("learned")
    torch.manual_seed(1)
    rows = torch.rand(2, 1, 1, 1, 16).round() * 200  # stripes: a hidden patch can be known
    volume = rows.expand(2, 1, 4, 16, 16).to(torch.uint8)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        masks = model.draw(volume, [(step, 0), (step, 1)], seed=0)
        loss = reconstruction_error(
            model(volume, masks), volume, (2, 4, 4), tokens=masks.hidden, scale=1 / 255
        )
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            for name, p in model.named_parameters():
                assert p.grad is not None and bool(p.grad.any()), name
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.4 * losses[0]


def test_compiled_and_plain_step_agree(monkeypatch):
    import em_models.patches as patches

    volume = torch.randint(0, 256, (2, 1, 4, 16, 16), dtype=torch.uint8)
    found = []
    for plain in (False, True):
        model = model_of()
        if plain:
            monkeypatch.setattr(patches, "compiled_patches", lambda tensor: None)
        masks = model.draw(volume, KEYS, seed=0)
        error = plain_reconstruction_error if plain else reconstruction_error
        settings = {"tokens": masks.hidden, "scale": 1 / 255}
        loss = error(model(volume, masks), volume, (2, 4, 4), **settings)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_large_builds_and_runs_on_meta():
    with torch.device("meta"):
        model = mae_size("large")
        model = Mae(model)
        volume = torch.zeros(1, 1, 16, 32, 32)
        masks = Masks(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 24, dtype=torch.int64))
        model(volume, masks).sum().backward()
    assert count_parameters(model) > 3e8
    assert model.encoder.blocks[0].mlp.fc1.weight.grad.shape == (4096, 1024)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="wanted random, tube or block"):
        MaeConfig(mask="half")
    with pytest.raises(ValueError, match="share between 0 and 1"):
        MaeConfig(hidden_share=0)

import pytest
import torch
from em_models import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    count_parameters,
    load,
    save,
)
from em_models.patch_discriminator import PUBLISHED


def make(**settings):
    torch.manual_seed(0)
    return PatchDiscriminator(PatchDiscriminatorConfig(**settings))


@pytest.mark.parametrize(
    ("config", "parameters", "field"),
    [
        (PatchDiscriminatorConfig(), 42_609, 34),
        (PUBLISHED, 2_763_713, 70),
        (PatchDiscriminatorConfig(channels=2, layers=5), 11_263, 286),
    ],
    ids=["default", "published", "deep"],
)
def test_sizes_are_what_was_published(config, parameters, field):
    model = PatchDiscriminator(config)
    assert count_parameters(model) == parameters
    assert config.receptive_field == field
    assert max(config.widths) <= 8 * config.channels


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_score_sees_its_patch_and_nothing_else(layers):
    model = make(channels=4, layers=layers).double().eval()
    config = model.config
    side = config.receptive_field + 3 * config.pitch + config.pitch - 1
    image = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    scores = model(image, torch.rand(1, 1, side, side).double())
    assert scores.shape == (1, 1, 4, 4)
    for i, j in ((0, 0), (1, 3), (3, 2)):
        (gradient,) = torch.autograd.grad(scores[0, 0, i, j], image, retain_graph=True)
        for seen, place in ((gradient[0, 0].any(1), i), (gradient[0, 0].any(0), j)):
            seen = seen.nonzero().flatten()
            first = place * config.pitch
            assert (int(seen[0]), int(seen[-1])) == (first, first + config.receptive_field - 1)


def test_a_score_is_the_same_function_wherever_its_patch_lies():
    """A patch alone, in the middle and in the corner of an image gets one score."""
    model = make().eval()
    field, pitch = model.config.receptive_field, model.config.pitch
    pair = torch.rand(2, 1, 1, 90, 90)
    with torch.no_grad():
        scores = model(*pair)
        for i, j in ((0, 0), (5, 7), (14, 14)):
            y, x = pitch * i, pitch * j
            alone = model(*pair[..., y : y + field, x : x + field])
            torch.testing.assert_close(alone[0, 0, 0, 0], scores[0, 0, i, j])


def test_samples_of_a_batch_do_not_know_each_other():
    model = make().train()
    pair = torch.rand(2, 3, 1, 64, 64)
    model(*pair)
    model.eval()  # the power iteration moves the weights while training
    torch.testing.assert_close(model(*pair)[1:2], model(*pair[:, 1:2]))


def test_spectral_norm_bounds_every_layer():
    model = make(channels=4)
    with torch.no_grad():
        for layer in model.layers:
            layer.parametrizations.weight.original.mul_(50)
    for _ in range(30):
        model(*torch.rand(2, 1, 1, 40, 40))
    model.eval()
    for layer in model.layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(largest, torch.ones(()), rtol=1e-2, atol=0)
    free = make(channels=4, spectral=False)
    assert all(type(layer.weight) is torch.nn.Parameter for layer in free.layers)


def test_several_passes_share_one_backward():
    """True and restored images pass one after the other, and the penalty is differentiated twice."""
    model = make(channels=4).train()
    real, fake, condition = torch.rand(3, 2, 1, 40, 40).unbind()
    real.requires_grad_()
    score = model(real, condition)
    (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
    (model(fake, condition).mean() - score.mean() + slope.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_reduced_precision_gives_nearly_the_same():
    model = make().eval()
    pair = torch.rand(2, 2, 1, 64, 64)
    exact = model(*pair)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.train()(*pair)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("spectral", [True, False])
def test_weights_come_back(tmp_path, spectral):
    model = make(channels=4, spectral=spectral)
    pair = torch.rand(2, 1, 1, 40, 40)
    model(*pair)
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    torch.testing.assert_close(again(*pair), model.eval()(*pair), rtol=0, atol=0)
    # The vectors of the power iteration travel too: training goes on as if it had not stopped.
    torch.testing.assert_close(again.train()(*pair), model.train()(*pair), rtol=0, atol=0)


def test_an_image_alone_is_judged_without_a_condition():
    assert make(inputs=1)(torch.rand(2, 1, 34, 40)).shape == (2, 1, 1, 2)


def test_bad_input_is_named():
    for name in ("inputs", "channels", "layers"):
        with pytest.raises(ValueError, match=f"{name} is 0; wanted at least 1"):
            PatchDiscriminatorConfig(**{name: 0})
    with pytest.raises(ValueError, match=r"1 \+ 0 channels; this discriminator takes 2"):
        make()(torch.rand(1, 1, 64, 64))
    with pytest.raises(ValueError, match="40 × 33 px is smaller than the patches of 34 px"):
        make()(*torch.rand(2, 1, 1, 40, 33))

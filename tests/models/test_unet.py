import warnings

import pytest
import torch
from em_models import (
    BatchNorm,
    DenseEncoder,
    DenseEncoderConfig,
    UNet,
    UNetConfig,
    count_parameters,
    effective_receptive_field,
    load,
    save,
)

SMALL = {"channels": (6, 8, 10, 12)}
GUIDE = DenseEncoderConfig(channels=(4,) * 6, embedding=5, classes=3)


def make(**settings):
    """A small U-Net in float64 whose norms have seen data."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(**(SMALL | settings))).double()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(2, model.config.slices, 96, 96).double())
    return model.eval()


def reached(model, size=240):
    """Farthest pixels before and after its own that some logit depends on along y, by gradient."""
    stride, before, after = model.config.stride, 0, 0
    image = torch.rand(1, 1, size, 48, dtype=torch.float64, requires_grad=True)
    logits = model(image)
    for place in range(size // 2, size // 2 + stride):
        (gradient,) = torch.autograd.grad(logits[..., place, 24].sum(), image, retain_graph=True)
        rows = gradient[0, 0].any(1).nonzero().flatten()
        before, after = max(before, place - int(rows[0])), max(after, int(rows[-1]) - place)
    return before, after


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"down": "stride"},
        {"up": "bilinear"},
        {"channels": (4, 6)},
        {"guide": GUIDE},
        {"guide": GUIDE, "guide_scale": 2},
    ],
    ids=["default", "strided", "bilinear", "shallow", "guided", "guided at half"],
)
def test_the_receptive_field_is_what_construction_says(settings):
    model = make(**settings)
    assert reached(model) == model.config.reach
    assert model.config.receptive_field == sum(model.config.reach) + 1
    assert model.config.halo % model.config.stride == 0
    assert model.config.halo >= max(model.config.reach)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"down": "stride", "up": "bilinear"},
        {"activation": "gelu"},
        {"slices": 3},
        {"guide": GUIDE},
    ],
)
def test_tiles_with_the_halo_agree_with_the_whole(settings):
    model = make(**settings)
    config = model.config
    image = torch.rand(1, config.slices, 288, 40).double()
    with torch.no_grad():
        whole = model(image)
        start = config.halo + 8
        tile = image[..., start - config.halo : start + 32 + config.halo, :]
        inner = model(tile)[..., config.halo : config.halo + 32, :]
    torch.testing.assert_close(inner, whole[..., start : start + 32, :])


def test_what_the_issue_asks_for():
    """Widths, resolutions and the count of parameters that docs/segment.md states."""
    config = UNetConfig(classes=2)
    model = UNet(config)
    shapes = []
    for block in (*model.encoder, model.bottleneck):
        block.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    assert model(torch.rand(2, 1, 256, 256)).shape == (2, 2, 256, 256)
    assert shapes == [(32, 256, 256), (64, 128, 128), (128, 64, 64), (256, 32, 32), (256, 32, 32)]
    assert count_parameters(model) == 1_581_042
    assert (config.receptive_field, config.stride, config.halo) == (151, 8, 80)
    assert all(type(m) is BatchNorm for m in model.modules() if "Norm" in type(m).__name__)


def test_deep_supervision_adds_logits_while_training_only():
    model = UNet(UNetConfig(classes=3, deep_supervision=True, **SMALL))
    logits = model(torch.rand(2, 1, 32, 32))
    assert [tuple(one.shape) for one in logits] == [(2, 3, n, n) for n in (32, 16, 8)]
    assert model.eval()(torch.rand(2, 1, 32, 32)).shape == (2, 3, 32, 32)


def test_dropout_and_squeeze_do_something():
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 32)
    dropping = UNet(UNetConfig(dropout=0.5, **SMALL))
    assert not torch.equal(dropping(image), dropping(image))
    with pytest.warns(UserWarning, match="depends on where tiles begin"):
        squeezing = make(squeeze=True)
    assert reached(squeezing, 160) == (87, 79)  # from border to border of the tile
    assert not squeezing.config.local


def test_group_norm_warns_that_tiles_have_statistics_of_their_own():
    with pytest.warns(UserWarning, match="every tile then has its own statistics"):
        model = make(norm="group")
    assert reached(model, 160) == (87, 79)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
@pytest.mark.parametrize("down", ["pool", "stride"])
def test_without_norms_biases_take_their_place(activation, down):
    model = make(norm="none", activation=activation, down=down, up="bilinear", dropout=0.1)
    assert model.config.local and reached(model) == model.config.reach
    assert not any("Norm" in type(m).__name__ for m in model.modules())
    spatial = [m for m in model.modules() if getattr(m, "kernel_size", (1,)) in ((3, 3), (7, 7))]
    assert len(spatial) > 14 and all(m.bias is not None for m in spatial)
    image = torch.rand(2, 1, 32, 32).double()
    torch.testing.assert_close(model(image)[1:], model(image[1:]))
    # Nothing that a skip passes on is overwritten: what is learned from is what was computed.
    weight = model.encoder[1].conv1.weight
    (slope,) = torch.autograd.grad(model(image).square().sum(), weight)
    with torch.no_grad():
        sides = []
        for step in (1e-6, -2e-6):
            weight[0, 0, 1, 1] += step
            sides.append(model(image).square().sum())
    torch.testing.assert_close(
        slope[0, 0, 1, 1], (sides[0] - sides[1]) / 2e-6, rtol=1e-4, atol=1e-6
    )


def test_the_guide_sees_what_it_was_trained_on():
    """Its codes in the U-Net are those of the encoder alone, at the middle of its cells."""
    model = make(guide=GUIDE, guide_scale=2)
    encoder = DenseEncoder(GUIDE).double().eval()
    encoder.load_state_dict(model.guide.state_dict())
    image = torch.rand(1, 1, 192, 192).double()
    seen = []
    model.guide.register_forward_hook(lambda _, __, codes: seen.append(codes.embedding))
    model(image)
    own = torch.nn.functional.avg_pool2d(image, 2)  # 96 px
    want = encoder(own, dense=True).embedding  # at pixels 20 … 75
    inside = slice(21 - 20, None, 4)  # codes of pixels 21, 25, …: cell 5 on
    got = seen[0][..., 5:, 5:][
        ..., : want[..., inside, inside].shape[-2], : want[..., inside, inside].shape[-1]
    ]
    torch.testing.assert_close(got, want[..., inside, inside])
    assert seen[0].shape[-2:] == (24, 24)


def test_the_effective_field_is_where_the_gradient_is():
    class Blur(torch.nn.Module):
        def forward(self, image):
            return torch.nn.functional.avg_pool2d(image, 11, 1, 5)

    image = torch.rand(2, 1, 64, 64)
    assert effective_receptive_field(Blur().eval(), image, share=0.999) == 11
    assert effective_receptive_field(Blur().eval(), image, share=0.2) == 5  # 25 of 121 pixels
    model = make()
    field = effective_receptive_field(model, torch.rand(1, 1, 256, 256).double())
    assert 9 <= field < model.config.receptive_field
    with pytest.raises(ValueError, match="eval"):
        effective_receptive_field(model.train(), image.double())


def test_weights_come_back_with_their_guide(tmp_path):
    model = make(guide=GUIDE, guide_scale=2, decoder=(4, 6, 8))
    save(model, tmp_path)
    again = load(tmp_path).double()
    assert again.config == model.config
    image = torch.rand(1, 1, 64, 64).double()
    with torch.no_grad():  # the weights travel as float64
        torch.testing.assert_close(again(image), model(image), rtol=1e-6, atol=1e-6)


def test_bad_input_is_named():
    for settings, message in (
        ({"channels": (8,)}, "at least two levels"),
        ({"slices": 2}, "odd"),
        ({"classes": 0}, "classes is 0"),
        ({"decoder": (8, 8)}, "need 3"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"guide": GUIDE, "guide_scale": 4}, "a code every 16 px"),
        ({"guide": DenseEncoderConfig(padding="zeros")}, "without padding"),
    ):
        with pytest.raises(ValueError, match=message):
            UNetConfig(**settings)
    model = UNet(UNetConfig(**SMALL))
    with pytest.raises(ValueError, match="pad it, for instance to 104 × 136"):
        model(torch.rand(1, 1, 100, 130))
    with pytest.raises(ValueError, match="2 slices; this U-Net takes 1"):
        model(torch.rand(1, 2, 32, 32))


@pytest.mark.parametrize("scale", [1, 2])
def test_the_smallest_side_with_a_guide_is_named(scale):
    model = make(guide=GUIDE, guide_scale=scale)
    with pytest.raises(ValueError, match=r"image of 64 × 8 px; .* at least \d+ px") as error:
        model(torch.rand(1, 1, 64, 8).double())
    side = int(str(error.value).split("at least ")[1].split()[0])
    assert model(torch.rand(1, 1, side, side).double()).shape[-1] == side
    with pytest.raises(ValueError, match=f"at least {side} px"):
        model(torch.rand(1, 1, side, side - model.config.stride).double())

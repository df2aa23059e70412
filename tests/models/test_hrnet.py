import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from em_models import (
    BatchNorm,
    HrNet,
    HrNetConfig,
    TimmHrNet,
    TimmHrNetConfig,
    count_parameters,
    load,
    save,
)

SMALL = {"channels": (4, 5, 6), "modules": 2}


def make(config):
    """A network in float64 whose norms have seen data."""
    torch.manual_seed(0)
    model = (HrNet if type(config) is HrNetConfig else TimmHrNet)(config).double()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(2, config.slices, 96, 96).double())
    return model.eval()


def reached(model, axis, size=240, across=48):
    """Farthest pixels before and after its own that some logit depends on along an axis."""
    stride, before, after = model.config.stride, 0, 0
    image = torch.rand(1, 1, size, across, dtype=torch.float64, requires_grad=True)
    logits = model(image if axis == "y" else image.mT)
    logits = logits if axis == "y" else logits.mT
    for place in range(size // 2, size // 2 + stride):
        row = logits[..., place, across // 2 :].sum()
        (gradient,) = torch.autograd.grad(row, image, retain_graph=True)
        rows = gradient[0, 0].any(1).nonzero().flatten()
        before, after = max(before, place - int(rows[0])), max(after, int(rows[-1]) - place)
    return before, after


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize(
    "config",
    [
        HrNetConfig(**SMALL),
        HrNetConfig(channels=(4, 6), modules=1),
        HrNetConfig(channels=(3, 4, 5, 6), modules=1, blocks=2),
        HrNetConfig(**SMALL, norm="none", activation="gelu"),
        TimmHrNetConfig(width=8),
        TimmHrNetConfig(width=8, stem_stride=2),
    ],
    ids=["three branches", "two", "four", "no norm", "timm", "timm at half"],
)
def test_the_receptive_field_is_what_construction_says(config, axis):
    model = make(config)
    size = -(-(2 * max(config.reach) + 3 * config.stride) // 32) * 32
    assert reached(model, axis, size) == config.reach
    assert config.receptive_field == sum(config.reach) + 1
    assert config.halo % config.stride == 0 and config.halo >= max(config.reach)
    assert config.local


@pytest.mark.parametrize(
    "config",
    [
        HrNetConfig(classes=2, **SMALL),
        HrNetConfig(slices=3, **SMALL),
        HrNetConfig(**SMALL, norm="none"),
        TimmHrNetConfig(width=8),
    ],
    ids=["plain", "slices", "no norm", "timm"],
)
def test_tiles_with_the_halo_agree_with_the_whole(config):
    """Tiles at every kind of place: they begin at multiples of the stride, not of anything coarser."""
    model = make(config).float()
    halo, stride = config.halo, config.stride
    image = torch.rand(1, config.slices, 2 * halo + 7 * stride, 2 * halo + 6 * stride)
    with torch.no_grad():
        whole = model(image)
        for y, x in ((0, 0), (3 * stride, stride), (5 * stride, 4 * stride)):
            tile = image[..., y : y + 2 * halo + 2 * stride, x : x + 2 * halo + 2 * stride]
            inner = model(tile)[..., halo:-halo, halo:-halo]
            y, x = y + halo, x + halo
            there = whole[..., y : y + 2 * stride, x : x + 2 * stride]
            torch.testing.assert_close(inner, there, rtol=1e-5, atol=1e-5)


def test_a_branch_keeps_its_resolution_to_the_end():
    model = HrNet(HrNetConfig(classes=2))
    shapes = []
    for exchange in model.exchanges:
        exchange.register_forward_hook(lambda _, __, y: shapes.append([tuple(x.shape) for x in y]))
    assert model(torch.rand(1, 1, 48, 64)).shape == (1, 2, 48, 64)
    every = [(1, 16, 48, 64), (1, 32, 24, 32), (1, 64, 12, 16)]
    assert shapes == [every, every, every, every[:1]]
    assert count_parameters(model) == 523_650
    assert (model.config.receptive_field, model.config.stride, model.config.halo) == (82, 4, 44)
    assert all(type(m) is BatchNorm for m in model.modules() if "Norm" in type(m).__name__)


def test_every_branch_hears_of_every_other():
    """What one branch alone is given reaches all of them in one exchange."""
    exchange = make(HrNetConfig(**SMALL)).exchanges[0]
    given = [torch.rand(1, c, 32 >> i, 32 >> i).double() for i, c in enumerate((4, 5, 6))]
    before = exchange(given)
    for source in range(3):
        changed = [x + (i == source) for i, x in enumerate(given)]
        assert all(
            (a - b).abs().max() > 1e-3 for a, b in zip(before, exchange(changed), strict=True)
        )


def test_nothing_is_idle_in_training():
    """Every parameter has a gradient, as several processes ask for."""
    for config in (HrNetConfig(**SMALL), HrNetConfig(**SMALL, norm="none"), TimmHrNetConfig()):
        model = make(config).train()
        model(torch.rand(2, 1, 32, 32).double()).square().sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, idle


def test_without_norms_every_convolution_has_a_bias():
    model = make(HrNetConfig(**SMALL, norm="none"))
    assert not any("Norm" in type(m).__name__ for m in model.modules())
    convolutions = [m for m in model.modules() if getattr(m, "kernel_size", (1,)) == (3, 3)]
    assert len(convolutions) > 16 and all(m.bias is not None for m in convolutions)
    image = torch.rand(2, 1, 32, 32).double()
    model.train()
    torch.testing.assert_close(model(image)[1:], model(image[1:]))


@pytest.mark.parametrize(("stem", "side"), [(1, 32), (2, 64), (4, 64)])
def test_timms_branches_are_joined_as_published(stem, side):
    """Interpolated, put together, one 1 × 1 convolution of all channels: the longer way round."""
    model = make(TimmHrNetConfig(classes=2, width=8, stem_stride=stem, slices=3))
    image = torch.rand(1, 3, side, side).double()
    levels = model.backbone(image)
    assert [tuple(x.shape[1:]) for x in levels] == [
        (c, side // stem // f, side // stem // f) for c, f in ((16, 1), (32, 2), (64, 4), (128, 8))
    ]
    finest = levels[0].shape[-2:]
    large = [F.interpolate(x, finest, mode="bilinear") for x in levels]
    weight = torch.cat([join.weight for join in model.joins], 1)
    logits = model.head(F.conv2d(torch.cat(large, 1), weight))
    wanted = F.interpolate(logits, image.shape[-2:], mode="bilinear")
    torch.testing.assert_close(model(image), wanted)


def test_timms_network_with_its_own_stem_is_timms():
    model = make(TimmHrNetConfig(stem_stride=4, width=8)).float()
    own = timm.create_model(
        "hrnet_w18_small", features_only=True, feature_location="", in_chans=1
    ).eval()
    own.load_state_dict(model.backbone.state_dict())
    image = torch.rand(1, 1, 64, 96)
    for ours, theirs in zip(model.backbone(image), own(image)[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    assert len(norms) > 50 and all(type(m) is BatchNorm for m in norms)


def test_timms_tables_and_the_order_of_draws_stay_as_they_were():
    from timm.models.hrnet import cfg_cls

    before = copy.deepcopy(cfg_cls)
    torch.manual_seed(3)
    TimmHrNet(TimmHrNetConfig(stem_stride=2, slices=3))
    assert cfg_cls == before
    state = torch.random.get_rng_state()
    config = TimmHrNetConfig(backbone="hrnet_w18_small_v2", stem_stride=1)
    assert config.receptive_field > TimmHrNetConfig().receptive_field
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "config",
    [HrNetConfig(classes=2, **SMALL, norm="none"), TimmHrNetConfig(stem_stride=2, width=8)],
)
def test_weights_come_back(tmp_path, config):
    model = make(config).float()
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == config and not again.training
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


def test_pretrained_weights_are_asked_for_once(tmp_path, monkeypatch):
    create, asked = timm.create_model, []

    def record(name, pretrained=False, **settings):
        asked.append(pretrained)
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", record)
    model = TimmHrNet(TimmHrNetConfig(width=8, pretrained=True))
    assert asked == [True] and not model.config.pretrained
    save(model, tmp_path)
    load(tmp_path)
    assert asked == [True, False]


@pytest.mark.parametrize(
    "changes", [{"backbone": "hf-hub:somebody/hrnet_w18"}, {"pretrained": True}]
)
def test_nothing_is_fetched_because_a_file_says_so(tmp_path, monkeypatch, changes):
    save(TimmHrNet(TimmHrNetConfig(width=8)), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(described))
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("timm was asked"))
    with pytest.raises(ValueError, match="would have timm fetch"):
        load(tmp_path)


def test_bad_input_is_named():
    for kind, settings, message in (
        (HrNetConfig, {"classes": 0}, "classes is 0"),
        (HrNetConfig, {"slices": 2}, "odd"),
        (HrNetConfig, {"channels": (8,)}, "at least two branches"),
        (HrNetConfig, {"modules": 0}, "modules is 0"),
        (HrNetConfig, {"blocks": 0}, "blocks is 0"),
        (TimmHrNetConfig, {"backbone": "resnet18"}, "wanted an HRNet of timm"),
        (TimmHrNetConfig, {"stem_stride": 3}, "wanted 1, 2 or 4"),
        (TimmHrNetConfig, {"width": 0}, "width is 0"),
        (TimmHrNetConfig, {"slices": 4}, "odd"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(**settings)
    with pytest.raises(ValueError, match="pad it, for instance to 48 × 32"):
        HrNet(HrNetConfig(**SMALL))(torch.rand(1, 1, 46, 30))
    with pytest.raises(ValueError, match="2 slices; this HRNet takes 1"):
        TimmHrNet(TimmHrNetConfig(width=8))(torch.rand(1, 2, 32, 32))

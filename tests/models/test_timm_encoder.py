import copy
import dataclasses

import em_models
import pytest
import timm
import torch
from em_models import TimmEncoder, TimmEncoderConfig

# Small models of timm with stages at 4 and 8 px, and at 2, 4 and 8 px.
SMALL = ("test_convnext", "test_resnet")


@pytest.fixture
def encoder():
    """A function that makes an encoder in which every branch has a say."""

    def make(backbone="test_convnext", **settings):
        torch.manual_seed(0)
        config = TimmEncoderConfig(backbone=backbone, classes=5, width=8, embedding=8, **settings)
        model = TimmEncoder(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # scales that begin at 0 or 1e-6
                    parameter.uniform_(0.5, 1.5)
        return model

    return make


@pytest.mark.parametrize(("stride", "field"), [(4, 76), (8, 224)])
def test_convnext_tiny_sees_76_and_224_px(stride, field):
    config = TimmEncoderConfig(backbone="convnext_tiny", max_stride=stride, width=8)
    geometry = TimmEncoder(config).geometry
    smoothing = 2 * 4  # the decoder's 3 × 3 at the pitch of the codes
    assert geometry.receptive_field == field + smoothing
    assert geometry.position_free and geometry.trimmed == field + smoothing - 1


@pytest.mark.parametrize("decoder", ["fpn", "unet"])
@pytest.mark.parametrize("backbone", SMALL)
def test_a_code_depends_on_its_patch_alone(encoder, backbone, decoder):
    model = encoder(backbone, decoder=decoder)
    geometry = model.geometry
    field, pitch = geometry.receptive_field, geometry.pitch
    size = geometry.crop_size(3)
    image = torch.randn(1, 1, size, size).double()
    before = model(image).raw
    assert before.shape[-2:] == (3, 3)
    # The patch of the code in the middle begins one pitch after that of the first.
    first, last = pitch, pitch + field - 1
    for row, column, inside in (
        (first, size // 2, True),
        (last, size // 2, True),
        (size // 2, first, True),
        (size // 2, last, True),
        (first - 1, size // 2, False),
        (last + 1, size // 2, False),
        (size // 2, first - 1, False),
        (size // 2, last + 1, False),
    ):
        changed = image.clone()
        changed[..., row, column] += 100
        difference = (model(changed).raw - before)[..., 1, 1].abs().max()
        assert bool(difference > 0) == inside, (row, column)
    outside = torch.randn_like(image)
    outside[..., first : last + 1, first : last + 1] = image[
        ..., first : last + 1, first : last + 1
    ]
    torch.testing.assert_close(model(outside).raw[..., 1, 1], before[..., 1, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pitch", [2, 4, 8])
@pytest.mark.parametrize("backbone", SMALL)
def test_strided_and_dense_codes_are_the_same_codes(encoder, backbone, pitch):
    model = encoder(backbone, code_pitch_vx=pitch)
    size = model.geometry.crop_size(2)
    image = torch.randn(1, 1, size + 5, size + 3).double()
    dense, strided = model(image, dense=True), model(image)
    assert dense.logits.shape[-2:] == (pitch + 6, pitch + 4)
    for a, b in zip(dense, strided, strict=True):
        torch.testing.assert_close(a[..., ::pitch, ::pitch], b)


@pytest.mark.parametrize(("backbone", "stride"), [("test_convnext", 4), ("test_resnet", 8)])
def test_position_does_not_enter(encoder, backbone, stride):
    model = encoder(backbone, max_stride=stride)
    size = model.geometry.crop_size(3)
    image = torch.randn(1, 1, size + 7, size + 13).double()
    whole = model(image, dense=True).logits
    crop = model(image[..., 7:, 13:], dense=True).logits
    torch.testing.assert_close(crop, whole[..., 7:, 13:])
    strided = model(image[..., 7:, 13:]).logits  # at an odd offset
    torch.testing.assert_close(strided, whole[..., 7::4, 13::4])


def test_features_are_those_of_timm(encoder):
    """Spreading the strides changes nothing where timm's own network has an output."""
    model = encoder("test_resnet", max_stride=8)
    settings = {"features_only": True, "in_chans": 1, "out_indices": [0, 1, 2]}
    original = timm.create_model("test_resnet", **settings).double().eval()
    original.load_state_dict(model.backbone.state_dict())
    image = torch.randn(1, 1, 64, 64).double()
    model.spread.take(1)
    for found, expected, pitch in zip(
        model.backbone(image), original(image), (2, 4, 8), strict=True
    ):
        torch.testing.assert_close(found[..., ::pitch, ::pitch], expected)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("test_efficientnet", "pools the whole crop (SqueezeExcite)"),
        ("convnextv2_atto", "has norms over space (GlobalResponseNorm"),
        ("mobilevit_xxs", "attends over the crop (Attention)"),
        ("resnetv2_50x1_bit", "has norms over space (GroupNormAct)"),
        ("ecaresnet50t", "looks at more than a patch"),
        ("hrnet_w18_small", "strides cannot become dilation"),
    ],
)
def test_what_may_know_its_place_says_so(backbone, words):
    model = TimmEncoder(TimmEncoderConfig(backbone=backbone, width=8))
    assert all(module.training for module in model.modules())
    geometry = model.eval().geometry
    assert not geometry.position_free and geometry.receptive_field is None
    assert words in geometry.reason and geometry.reason.startswith(backbone)
    image = torch.randn(1, 1, 61, 66)
    codes = model(image)
    assert codes.logits.shape == (1, 50, 16, 17)
    assert model(image, dense=True).embedding.shape == (1, 64, 61, 66)


def test_channels_that_are_last_are_so_at_every_size(encoder):
    """At 192 px a map of 48 channels is 48 places high and wide."""
    model = encoder("mambaout_femto", max_stride=4)
    image = torch.randn(1, 1, 192, 192).double()
    (level,) = model.backbone(image)
    assert level.shape == (1, 48, 48, 48) and model.channels == [48]
    raw = model.embed_norm(model.embed(model.decoder([level.movedim(-1, 1)], [1])))
    torch.testing.assert_close(model(image).raw, raw)


def test_classic_form_is_padded_and_knows_its_border(encoder):
    model = encoder(padding="zeros")
    geometry = model.geometry
    assert not geometry.position_free and "zero padding" in geometry.reason
    assert geometry.crop_size(24) == 93 and geometry.codes(96) == 24
    image = torch.randn(1, 1, 96, 96).double()
    whole, crop = model(image).logits, model(image[..., 32:, 32:]).logits
    assert whole.shape[-2:] == (24, 24)
    assert (crop - whole[..., 8:, 8:])[..., 0, 0].abs().max() > 1e-2


def test_a_copy_runs_by_itself(encoder):
    """The moving average of a network is a copy; what pitch it runs at is its own affair."""
    model = encoder("test_resnet")
    twin = copy.deepcopy(model)
    image = torch.randn(1, 1, model.geometry.crop_size(2), model.geometry.crop_size(2)).double()
    dense = twin(image, dense=True).logits
    strided = model(image).logits
    torch.testing.assert_close(strided, dense[..., ::4, ::4])
    with torch.no_grad():
        twin.prototypes.zero_()
    torch.testing.assert_close(model(image).logits, strided)


def test_everything_in_it_learns(encoder):
    model = encoder("test_resnet").train()
    model(torch.randn(2, 1, 120, 120).double()).logits.square().mean().backward()
    missing = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert not missing


def test_what_is_saved_is_loaded_without_asking_timm_for_weights(tmp_path, monkeypatch):
    asked, create = [], timm.create_model

    def record(name, pretrained=False, **settings):
        asked.append(pretrained)
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", record)
    config = TimmEncoderConfig(backbone="test_convnext", max_stride=4, pretrained=True)
    model = TimmEncoder(config).eval()
    assert True in asked
    assert model.config == dataclasses.replace(config, pretrained=False)
    asked.clear()
    em_models.save(model, tmp_path)
    loaded = em_models.load(tmp_path)
    assert True not in asked and loaded.geometry == model.geometry
    image = torch.randn(1, 1, 60, 60)
    torch.testing.assert_close(loaded(image).logits, model(image).logits, rtol=0, atol=0)


def test_missing_weights_are_named(monkeypatch):
    create = timm.create_model

    def without_network(name, pretrained=False, **settings):
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(
        OSError, match=r"test_convnext \(ConnectionError: no route.*pretrained to false"
    ):
        TimmEncoder(TimmEncoderConfig(backbone="test_convnext", pretrained=True))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="features every 4, 8, 16, 32 px, none at 2 or less"):
        TimmEncoder(TimmEncoderConfig(backbone="convnext_atto", max_stride=2))
    for name, value in (
        ("code_pitch_vx", 3),
        ("decoder", "dpt"),
        ("padding", "same"),
        ("width", 0),
        ("head", "mlp"),
    ):
        with pytest.raises(ValueError, match=f"{name} is"):
            TimmEncoderConfig(**{name: value})

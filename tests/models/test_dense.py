import pytest
import torch
from em_models import DenseEncoder, DenseEncoderConfig, layout
from em_models.dense import LAYOUTS

PITCHES = {1: (1,) * 6, 2: (2, 1, 1, 1, 1, 1), 4: (2, 1, 1, 2, 1, 1)}


@pytest.fixture
def encoder():
    """A function that makes an encoder whose norms have seen data."""

    def make(**settings):
        torch.manual_seed(0)
        model = DenseEncoder(DenseEncoderConfig(classes=7, **settings)).double()
        model(torch.randn(4, 1, 101, 101).double())
        return model.eval()

    return make


@pytest.mark.parametrize("pitch", [1, 2, 4])
def test_the_same_weights_give_the_same_codes_at_any_pitch(encoder, pitch):
    finer, model = encoder(code_pitch_vx=pitch), encoder()
    finer.load_state_dict(model.state_dict())
    assert (finer.geometry.pitch, finer.geometry.receptive_field) == (pitch, 41)
    image = torch.randn(1, 1, 61, 70).double()
    dense, codes = model(image, dense=True), finer(image)
    assert codes.logits.shape[-2:] == (20 // pitch + 1, 29 // pitch + 1)
    for a, b in zip(dense, codes, strict=True):
        torch.testing.assert_close(a[..., ::pitch, ::pitch], b)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_see_what_their_name_says(encoder, name):
    config = layout(name, width=0.25, classes=3)
    model = DenseEncoder(config).double().eval()
    field = int(name.removeprefix("rf").partition("-")[0])
    assert config.receptive_field == field and config.classes == 3
    assert config.channels == tuple(c // 4 for c in LAYOUTS[name].channels)
    size = config.crop_size(3)
    image = torch.randn(1, 1, size, size).double().requires_grad_()
    codes = model(image)
    assert codes.raw.shape == (1, 64, 3, 3)
    codes.raw[0, :, 1, 2].abs().sum().backward()
    rows, columns = image.grad[0, 0].nonzero(as_tuple=True)
    pitch = config.pitch
    assert (rows.min(), rows.max()) == (pitch, pitch + field - 1)
    assert (columns.min(), columns.max()) == (2 * pitch, 2 * pitch + field - 1)


@pytest.mark.parametrize("pools", [(), (3, 5)])
def test_zero_padding_gives_a_code_to_every_place_and_tells_it_where(encoder, pools):
    model = encoder(padding="zeros", pools=pools)
    geometry = model.geometry
    assert (geometry.margin, geometry.position_free) == (0, False)
    assert "border" in geometry.reason
    image = torch.randn(1, 1, 113, 110).double()
    strided, dense = model(image), model(image, dense=True)
    assert strided.logits.shape[-2:] == (29, 28) and dense.logits.shape[-2:] == (113, 110)
    for a, b in zip(dense, strided, strict=True):
        torch.testing.assert_close(a[..., ::4, ::4], b)
    # What the valid encoder cannot do: the same pixels, another code.
    crop = model(image[..., 8:, 8:], dense=True).logits
    assert (crop - dense.logits[..., 8:, 8:])[..., 0, 0].abs().max() > 0.1
    valid = encoder(pools=pools)
    valid.load_state_dict(model.state_dict())
    cut = slice(valid.geometry.margin, -valid.geometry.margin)
    inner = dense.logits[..., cut, cut]
    torch.testing.assert_close(inner, valid(image, dense=True).logits)


def test_the_embedding_sees_means_over_windows(encoder):
    model = encoder(pools=(5,), embedding=64)
    last = model.config.channels[-1]
    kept = torch.zeros_like(model.embed.weight)
    kept[:, -last:, 0, 0] = torch.eye(last)  # what is averaged, and nothing else
    model.embed.weight.data.copy_(kept)
    plain = encoder()
    kept = torch.zeros_like(plain.embed.weight)
    kept[:, -last:, 0, 0] = torch.eye(last)
    weights = model.state_dict() | {"embed.weight": kept}
    plain.load_state_dict(weights)
    image = torch.randn(1, 1, 101, 101).double()
    expected = torch.nn.functional.avg_pool2d(plain(image).raw, 5, 1)
    torch.testing.assert_close(model(image).raw, expected)
    with pytest.raises(ValueError, match=r"pools are \(4,\); wanted odd sides"):
        DenseEncoderConfig(pools=(4,))


def test_linear_head_has_a_bias_and_no_norm(encoder):
    model = encoder(head="linear")
    assert model.bias.shape == (7,) and "embed_norm.running_mean" not in model.state_dict()
    codes = model(torch.randn(1, 1, 61, 61).double())
    torch.testing.assert_close(
        codes.logits, torch.einsum("beyx,ke->bkyx", codes.raw, model.prototypes)
    )
    assert codes.logits.std() < 10  # softmax is not decided from the start


@pytest.mark.parametrize("pools", [(), (3, 5)])
@pytest.mark.parametrize("pitch", [1, 2, 4])
def test_strided_and_dense_codes_are_the_same_codes(encoder, pitch, pools):
    model = encoder(strides=PITCHES[pitch], pools=pools)
    config = model.config
    image = torch.randn(2, 1, 70, 75).double()
    dense, strided = model(image, dense=True), model(image)
    assert config.pitch == pitch
    assert dense.logits.shape[-2:] == (71 - config.receptive_field, 76 - config.receptive_field)
    for a, b in zip(dense, strided, strict=True):
        torch.testing.assert_close(a[..., ::pitch, ::pitch], b)


def test_a_code_depends_on_its_patch_alone(encoder):
    model = encoder()
    field = model.config.receptive_field
    image = torch.randn(1, 1, 101, 101).double().requires_grad_()
    logits = model(image).logits  # (1, 7, 16, 16)
    logits[0, :, 3, 5].sum().backward()
    rows, columns = image.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max()) == (12, 12 + field - 1)
    assert (columns.min(), columns.max()) == (20, 20 + field - 1)


def test_position_does_not_enter(encoder):
    model = encoder()
    image = torch.randn(1, 1, 120, 120).double()
    whole = model(image, dense=True).logits
    crop = model(image[..., 7:, 13:], dense=True).logits
    torch.testing.assert_close(crop, whole[..., 7:, 13:])


def test_embedding_is_of_unit_length_and_logits_are_cosines(encoder):
    codes = encoder(sharpness=3.0)(torch.randn(1, 1, 61, 61).double())
    torch.testing.assert_close(codes.embedding.norm(dim=1), torch.ones(1, 6, 6).double())
    assert codes.logits.abs().max() <= 3


def test_fine_layers_reach_the_embedding():
    """The last layer at each pitch is seen, and the norm of the embedding has nothing to learn."""
    model = DenseEncoder(DenseEncoderConfig(channels=(4, 5, 6, 7, 8, 9)))
    assert model.embed.in_channels == 6 + 9
    assert not list(model.embed_norm.parameters())


def test_impossible_layers_are_refused():
    with pytest.raises(ValueError, match="5, 6, 6 and 6 entries"):
        DenseEncoderConfig(channels=(8,) * 5)
    for name in ("channels", "strides", "dilations"):
        with pytest.raises(ValueError, match=f"{name} are"):
            DenseEncoderConfig(**{name: (1, 1, 0, 1, 1, 1)})
    for name, value in (("embedding", 0), ("sharpness", -1.0), ("sharpness", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} is"):
            DenseEncoderConfig(**{name: value})
    with pytest.raises(ValueError, match="classes is 1"):
        DenseEncoderConfig(classes=1)
    with pytest.raises(ValueError, match="code_pitch_vx is 3; wanted a divisor of 4"):
        DenseEncoderConfig(code_pitch_vx=3)
    with pytest.raises(ValueError, match="padding is 'reflect'"):
        DenseEncoderConfig(padding="reflect")
    with pytest.raises(ValueError, match="no layout 'rf99'; there are rf41"):
        layout("rf99")
    with pytest.raises(ValueError, match="odd"):
        DenseEncoderConfig(kernels=(4, 3, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="receptive field of 41"):
        DenseEncoder(DenseEncoderConfig())(torch.zeros(1, 1, 40, 60))

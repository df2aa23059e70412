import pytest
import torch
from em_models import DenseEncoder, DenseEncoderConfig

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
def test_strided_and_dense_codes_are_the_same_codes(encoder, pitch):
    model = encoder(strides=PITCHES[pitch])
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
    with pytest.raises(ValueError, match="odd"):
        DenseEncoderConfig(kernels=(4, 3, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="receptive field of 41"):
        DenseEncoder(DenseEncoderConfig())(torch.zeros(1, 1, 40, 60))

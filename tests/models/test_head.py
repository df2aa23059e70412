import pytest
import torch
from em_models import DenseEncoder, TimmEncoder, TimmEncoderConfig, layout
from em_models.head import check_head, read_codes


def test_cosine_head_forgets_lengths():
    torch.manual_seed(0)
    raw, prototypes = torch.randn(2, 6, 3, 4), torch.randn(5, 6)
    codes = read_codes(raw, prototypes, sharpness=8.0)
    cosines = torch.nn.functional.cosine_similarity(
        raw[:, None], prototypes[None, :, :, None, None], dim=2
    )
    torch.testing.assert_close(codes.logits, 8 * cosines)
    torch.testing.assert_close(codes.embedding.norm(dim=1), torch.ones(2, 3, 4))
    longer = read_codes(3 * raw, 7 * prototypes, sharpness=8.0)
    torch.testing.assert_close(longer.logits, codes.logits)
    torch.testing.assert_close(longer.raw, 3 * raw)


def test_linear_head_is_a_linear_map():
    raw, prototypes, bias = torch.randn(2, 6, 3, 4), torch.randn(5, 6), torch.randn(5)
    logits = read_codes(raw, prototypes, sharpness=8.0, bias=bias).logits
    expected = torch.einsum("beyx,ke->bkyx", raw, prototypes) + bias[:, None, None]
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    "encoder",
    [
        DenseEncoder(layout("rf25", embedding=6)),
        TimmEncoder(TimmEncoderConfig(backbone="resnet18", max_stride=4, embedding=6)),
    ],
    ids=["dense", "timm"],
)
@torch.no_grad()
def test_stretched_embeddings_are_a_matrix_times_what_they_were(encoder):
    torch.manual_seed(0)
    encoder.embed_norm.running_mean.normal_()
    encoder.embed_norm.running_var.uniform_(0.1, 3)
    encoder.eval()
    image, by = torch.randn(1, 1, 128, 128), torch.randn(6, 6)
    before = encoder(image).raw
    encoder.stretch(by)
    after = encoder(image)
    torch.testing.assert_close(
        after.raw, torch.einsum("oe,beyx->boyx", by, before), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(after.embedding.norm(dim=1), torch.ones(after.raw[:, 0].shape))


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="head is 'softmax'"):
        check_head(50, 64, "softmax", 8.0)

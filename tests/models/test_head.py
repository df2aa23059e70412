import pytest
import torch
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


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="head is 'softmax'"):
        check_head(50, 64, "softmax", 8.0)

import numpy as np
import pytest
import torch
from em_models.patches import grid_of, patchify, plain_patchify

PATCH = (2, 4, 8)


def cut(volume, tokens):
    """Patch by patch, with numpy."""
    z, y, x = (n // p for n, p in zip(volume.shape[2:], PATCH, strict=True))
    found = []
    for sample, names in zip(volume[:, 0].double().numpy(), tokens.tolist(), strict=True):
        for name in names:
            i, j, k = np.unravel_index(name, (z, y, x))
            box = sample[2 * i : 2 * i + 2, 4 * j : 4 * j + 4, 8 * k : 8 * k + 8]
            found.append(box.ravel())
    return torch.from_numpy(np.stack(found).reshape(len(tokens), -1, 64))


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.float32, torch.bfloat16])
def test_compiled_and_plain_agree_with_numpy(kind):
    torch.manual_seed(0)
    volume = torch.randint(0, 255, (2, 1, 4, 8, 24)).to(kind)
    tokens = torch.stack([torch.randperm(12)[:5] for _ in range(2)])
    wanted = cut(volume.to(torch.float32), tokens)
    for function in (patchify, plain_patchify):
        found = function(volume, PATCH, tokens=tokens)
        assert found.dtype == (kind if kind.is_floating_point else torch.float32)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0)
    every = torch.arange(12).expand(2, -1)
    torch.testing.assert_close(
        patchify(volume, PATCH).double(), cut(volume.to(torch.float32), every), rtol=0, atol=0
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) voxels; wanted multiples of the patch"):
        grid_of((3, 8, 8), PATCH)
    with pytest.raises(ValueError, match=r"wanted \(B, 1, Z, Y, X\)"):
        patchify(torch.zeros(2, 3, 4, 8, 8), PATCH)

import cv2
import numpy as np
import pytest
import torch
from em_data.augment.clahe import clahe
from em_data.synthetic import SyntheticConfig, render


@pytest.fixture(scope="module")
def slices():
    """(2, 512, 384) grey values of tissue, one slice pale."""
    raw = render(SyntheticConfig(shape_vx=(2, 512, 384))).raw
    raw[1] = 100 + raw[1] // 4
    return raw


@pytest.mark.parametrize("clip", [1.5, 3.0, 40.0])
@pytest.mark.parametrize("tile", [64, 128])
def test_it_is_the_clahe_of_opencv(slices, clip, tile):
    height, width = slices.shape[1:]
    reference = cv2.createCLAHE(clip, (width // tile, height // tile))
    found = clahe(torch.from_numpy(slices / np.float32(255)), tile_vx=tile, clip=clip) * 255
    for own, image in zip(found.numpy(), slices, strict=True):
        off = own - reference.apply(image)
        # OpenCV counts what is clipped in whole voxels per grey value, which matters less in
        # larger tiles, and rounds.
        assert np.abs(off).mean() < 1.5 * 64 / tile and np.abs(off).max() < 6 * 64 / tile


def test_one_tile_without_limit_is_plain_equalisation(slices):
    image = slices[0] / np.float32(255)
    found = clahe(torch.from_numpy(image), tile_vx=1000, clip=256.0).numpy()
    rank = np.searchsorted(np.sort(slices[0].ravel()), slices[0], side="right") / slices[0].size
    np.testing.assert_allclose(found, rank, atol=1e-5)


def test_slices_are_independent_and_symmetric(slices):
    images = torch.from_numpy(slices / np.float32(255))
    found = clahe(images, tile_vx=50)
    assert found.min() >= 0 and found.max() <= 1
    assert torch.equal(clahe(images[1], tile_vx=50), found[1])
    assert torch.equal(clahe(images[:, None], tile_vx=50)[:, 0], found)
    mirrored = clahe(images.flip(-1).transpose(-1, -2), tile_vx=64).transpose(-1, -2).flip(-1)
    torch.testing.assert_close(mirrored, clahe(images, tile_vx=64))
    assert found[1].std() > 1.5 * images[1].std()


def test_an_empty_slice_and_wrong_options():
    assert clahe(torch.zeros(1, 40, 40)).isfinite().all()
    with pytest.raises(ValueError, match="wanted at least 1"):
        clahe(torch.zeros(1, 8, 8), clip=0.5)

import pytest
import torch
from em_models import Vit3d, Vit3dConfig, dense_features, vit3d_size
from em_models.windows import lattice, weights

PATCH, WINDOW = (2, 4, 4), (4, 16, 16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Vit3d(Vit3dConfig(patch_vx=PATCH, width=24, depth=2, heads=2)).eval()


@pytest.fixture(scope="module")
def volume():
    return torch.randint(0, 256, (9, 43, 38), dtype=torch.uint8)


def features(model, volume, **options):
    def read(origin, size):
        z, y, x = (slice(o, o + n) for o, n in zip(origin, size, strict=True))
        return volume[z, y, x]

    options = {"window_vx": WINDOW} | options
    return dense_features(model, read, tuple(volume.shape), **options)


def test_any_block_is_what_the_whole_is(model, volume):
    whole = features(model, volume, layers=(1, -1))
    assert whole.shape == (48, 4, 10, 9)
    for origin, size in (((0, 0, 0), (4, 5, 9)), ((1, 5, 3), (2, 5, 6)), ((3, 9, 8), (1, 1, 1))):
        part = features(model, volume, layers=(1, -1), box=(origin, size))
        z, y, x = (slice(o, o + n) for o, n in zip(origin, size, strict=True))
        torch.testing.assert_close(part, whole[:, z, y, x], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_volume_of_256_voxels_in_blocks_is_what_it_is_at_once():
    torch.manual_seed(0)
    model = Vit3d(vit3d_size("tiny")).eval()  # patches of 8³
    volume = torch.randint(0, 256, (256, 256, 256), dtype=torch.uint8)
    whole = features(model, volume, window_vx=(64, 64, 64))  # 343 windows of 512 tokens
    assert whole.shape == (192, 32, 32, 32)
    # Two blocks that meet within windows, and what lies on both sides of their border.
    for origin, size in (((0, 0, 0), (32, 32, 13)), ((0, 0, 13), (32, 32, 19))):
        part = features(model, volume, window_vx=(64, 64, 64), box=(origin, size))
        torch.testing.assert_close(
            part, whole[..., origin[2] : origin[2] + size[2]], rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_one_window_is_one_look(model, volume):
    part = volume[:4, :16, :16]
    found = features(model, part)
    wanted = model.features(part[None, None], layer=-1)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    # A volume smaller than the window is shown as it is.
    small = features(model, part, window_vx=(64, 64, 64))
    torch.testing.assert_close(small, wanted, rtol=1e-4, atol=1e-5)


def test_there_are_no_seams():
    """Between windows the map changes no more than within them; side by side it would."""
    torch.manual_seed(0)
    config = Vit3dConfig(patch_vx=(1, 4, 4), width=24, depth=2, heads=2, positions="sincos")
    model = Vit3d(config).eval()
    volume = torch.zeros(1, 16, 192)  # what changes is what the model knows of the place

    def steps(overlap):
        found = features(model, volume, window_vx=(1, 16, 64), overlap=overlap)[:, 0]
        jump = found.diff(dim=2).square().sum((0, 1))  # between columns of tokens
        at = torch.zeros(47, dtype=torch.bool)
        at[[15, 31]] = True  # where windows of 16 tokens meet
        return float(jump[at].mean() / jump[~at].max())

    assert steps(0.0) > 3
    assert steps(0.5) < 1


def test_lattice_and_weights():
    assert lattice(8, 8, 0.5) == [0] and lattice(9, 8, 0.0) == [0, 1]
    assert lattice(33, 8, 0.25) == [0, 6, 12, 18, 24, 25]
    bump = weights((1, 4, 8))
    assert bump.shape == (1, 4, 8) and bump.min() > 0
    torch.testing.assert_close(bump, bump.flip(1, 2))
    inner = bump[0, 2]
    torch.testing.assert_close(inner[:4] + inner[4:], torch.full((4,), float(inner[:4].sum() / 2)))


def test_what_lies_outside_is_refused(model, volume):
    with pytest.raises(ValueError, match="leaves the map"):
        features(model, volume, box=((0, 0, 0), (5, 1, 1)))
    with pytest.raises(ValueError, match="smaller than a patch"):
        features(model, volume[:1])
    with pytest.raises(ValueError, match="0 ≤ share < 1"):
        features(model, volume, overlap=1.0)

import dataclasses

import pytest
import torch
from em_data import CubeConfig
from em_data.loader import Batch
from em_data.sampler import Key
from em_models import DecoderConfig, Mae, MaeConfig, Vit3dConfig, Voxels
from em_models.masks import Masks
from em_train.look.pictures import TITLE_PX
from em_train.mae import validation as mae_check
from em_train.mae.data import DataConfig
from em_train.mae.report import preview, save_spectrum
from em_train.mae.validation import (
    checked_masks,
    cosines,
    filled_in,
    inpainting_errors,
    shown,
    spectrum,
)
from PIL import Image

PATCH = (2, 4, 4)
DATA = DataConfig(cube=CubeConfig(size_vx=(4, 16, 16)))
NUMBERS = {"device": torch.device("cpu"), "kind": "fp32", "seed": 0}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Mae(
        MaeConfig(
            encoder=Vit3dConfig(patch_vx=PATCH, width=24, depth=1, heads=2),
            decoder=DecoderConfig(width=24, depth=1, heads=2),
        )
    ).eval()


def batch_of(volume):
    count = len(volume)
    return Batch(
        raw=volume,
        scale=torch.full((count,), 1 / 200),
        shift=torch.full((count,), -0.1),
        voxel_size_nm=[(16.0, 8.0, 8.0)] * count,
        origin_nm=torch.zeros(count, 3),
        keys=[Key(0, n) for n in range(count)],
    )


def stripes(count=2):
    """Nothing changes along y, so in-painting along it is exact where a patch of the row is seen."""
    torch.manual_seed(0)
    return torch.randint(0, 256, (count, 4, 1, 16)).expand(-1, -1, 16, -1).to(torch.uint8)


def test_masks_of_held_out_cubes_are_those_of_no_sample(model):
    voxels = Voxels(stripes()[:, None])
    first, again = (checked_masks(model, voxels, 0, 0) for _ in range(2))
    assert torch.equal(first.hidden, again.hidden)
    assert not torch.equal(first.hidden, checked_masks(model, voxels, 1, 0).hidden)
    assert not torch.equal(first.hidden, model.draw(voxels, [(0, 0), (0, 1)], seed=0).hidden)


def test_perfect_predictions_have_no_error(model, monkeypatch):
    """Patches are put back where they came from, and measured in the units of the loss."""
    volume = torch.randint(0, 256, (2, 4, 16, 16), dtype=torch.uint8)
    batch = batch_of(volume)

    def perfect(voxels, masks):
        target, _, _ = mae_check.patch_targets(
            voxels.stored, PATCH, tokens=masks.hidden, scale=1 / 255, eps=1e-6
        )
        return target

    monkeypatch.setattr(model, "forward", perfect)
    assert mae_check.model_error(model, [batch], DATA, **NUMBERS) == pytest.approx(0, abs=1e-6)
    voxels = Voxels(volume[:, None], batch.scale, batch.shift)
    masks = checked_masks(model, voxels, 0, 0)
    back = filled_in(perfect(voxels, masks), voxels, masks, PATCH)
    torch.testing.assert_close(back, volume.float() / 255, rtol=1e-4, atol=1e-4)
    assert all(share < 1e-6 for _, share in spectrum(model, [batch], DATA, **NUMBERS))


def test_a_flat_prediction_misses_everything(model, monkeypatch):
    batch = batch_of(torch.randint(0, 256, (2, 4, 16, 16), dtype=torch.uint8))
    monkeypatch.setattr(model, "forward", lambda v, m: torch.zeros(*m.hidden.shape, 32))
    assert mae_check.model_error(model, [batch], DATA, **NUMBERS) == pytest.approx(
        31 / 32, abs=1e-4
    )
    points = spectrum(model, [batch], DATA, **NUMBERS)
    assert all(share == pytest.approx(1) for _, share in points)
    frequencies = [frequency for frequency, _ in points]
    assert frequencies == sorted(frequencies) and 0.1 < frequencies[0] < frequencies[-1] < 0.6


def test_the_cosine_transform():
    scipy_fft = pytest.importorskip("scipy.fft")
    x = torch.randn(5, 8, dtype=torch.float64)
    wanted = torch.from_numpy(scipy_fft.dct(x.numpy(), norm="ortho"))
    torch.testing.assert_close(x @ cosines(8).double().T, wanted, rtol=1e-5, atol=1e-5)


def test_in_painting_is_measured_in_the_same_units(model, monkeypatch):
    # Each row of patches along y shows its first and last one: along y, filling in is exact; the
    # other axes mislead, unless nothing changes along them either.
    flat = torch.arange(16)[None, None, :, None].expand(2, 4, 16, 16).mul(16).to(torch.uint8)
    visible = torch.tensor([[0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19, 28, 29, 30, 31]] * 2)
    hidden = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23, 24, 25, 26, 27]] * 2)
    monkeypatch.setattr(model, "draw", lambda *args, **rest: Masks(visible, hidden))
    plain, helped = inpainting_errors(model, [batch_of(flat)], DATA, seed=0)
    assert plain == pytest.approx(0, abs=1e-4) and helped == pytest.approx(0, abs=1e-4)


def test_helped_in_painting_is_never_worse_than_a_flat_patch(model):
    batch = batch_of(torch.randint(0, 256, (2, 4, 16, 16), dtype=torch.uint8))
    plain, helped = inpainting_errors(model, [batch], DATA, seed=0)
    assert helped <= 31 / 32 + 1e-4 < plain  # of noise, nothing can be known


def test_what_is_shown(model):
    voxels = Voxels(stripes()[:, None])
    masks = checked_masks(model, voxels, 0, 0)
    seen = shown(voxels, masks, PATCH)
    assert seen.float().mean() == masks.visible.shape[1] / 32
    name = int(masks.visible[1, 0])
    z, y, x = name // 16, name // 4 % 4, name % 4
    assert seen[1, 2 * z : 2 * z + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].all()


def test_pictures(model, tmp_path):
    batch = batch_of(stripes())
    preview(model, batch, DATA, tmp_path / "a.png", **NUMBERS)
    equal = dataclasses.replace(DATA, clahe=True)
    preview(model, batch, equal, tmp_path / "b.png", **NUMBERS)
    with Image.open(tmp_path / "a.png") as picture:
        # 16 px wide planes, 14 times as large: xy, and xz and yz with slices 2 pixels tall.
        assert picture.size == (3 * 224 + 24, TITLE_PX + 14 * (16 + 2 + 8 + 2 + 8))
    save_spectrum([(0.2, 0.3), (0.5, 0.9), (0.8, 1.2)], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert len(picture.getcolors(maxcolors=1 << 16)) > 5

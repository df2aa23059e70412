import dataclasses

import numpy as np
import pytest
import torch
from em_data import Key, Stream, augment
from em_data.augment.defects import NUMBERS, DefectConfig, damage, lose
from em_data.synthetic import SyntheticConfig, render

KINDS = ["missing", "blurred", "faded", "folded", "stitched"]


@pytest.fixture(scope="module")
def tissue():
    """(4, 8, 96, 96) in [0, 1]."""
    raw = render(SyntheticConfig(shape_vx=(8, 192, 192))).raw
    quarters = [raw[:, y : y + 96, x : x + 96] for y in (0, 96) for x in (0, 96)]
    return torch.from_numpy(np.stack(quarters).astype(np.float32) / 255)


def draw(count, z):
    keys = [Key(0, n) for n in range(count)]
    return augment.draw(0, Stream.DEFECT, keys, (z, NUMBERS), "cpu")


def change(tissue, config, seed_rows=0):
    uniform = draw(len(tissue) + seed_rows, tissue.shape[1])[seed_rows:]
    return lose(damage(tissue.clone(), uniform, config), uniform, config), uniform


@pytest.mark.parametrize("kind", KINDS)
def test_each_defect_befalls_as_many_slices_as_asked_and_leaves_the_others(tissue, kind):
    config = DefectConfig(**{kind: 0.4})
    befallen = 0
    for row in range(0, 80, 4):
        changed, _ = change(tissue, config, row)
        assert changed.min() >= 0 and changed.max() <= 1
        befallen += (changed != tissue).flatten(2).any(-1).sum().item()
    total = 20 * 4 * 8
    expected = {"missing": 0.37}.get(kind, 0.4)  # some torn edges pass beside the slice
    assert abs(befallen / total - expected) < 0.07
    assert torch.equal(change(tissue, DefectConfig())[0], tissue)


def steepness(slices):
    return slices.diff(dim=-1).abs().mean((-2, -1))


def test_missing_slices_are_black_wholly_or_beyond_an_edge(tissue):
    changed, _ = change(tissue, DefectConfig(missing=1.0))
    black = (changed == 0).float().mean((-2, -1))
    assert 0.3 < (black == 1).float().mean() < 0.9
    partly = changed[(black < 1) & (black > 0)]
    before = tissue[(black < 1) & (black > 0)]
    assert len(partly) and (((partly == 0) | (partly == before)).all())
    alone = tissue[:, :1].clone()
    assert torch.equal(change(alone, DefectConfig(missing=1.0))[0], tissue[:, :1])


def test_blurred_and_faded_slices_lose_what_their_names_say(tissue):
    blurred, _ = change(tissue, DefectConfig(blurred=1.0))
    assert (steepness(blurred) < 0.5 * steepness(tissue)).all()
    torch.testing.assert_close(blurred.mean((-2, -1)), tissue.mean((-2, -1)), atol=0.01, rtol=0)
    faded, _ = change(tissue, DefectConfig(faded=1.0))
    ratio = faded.std((-2, -1)) / tissue.std((-2, -1))
    assert (ratio < 0.75).all() and (ratio > 0.15).all()
    assert (faded.mean((-2, -1)) - tissue.mean((-2, -1))).abs().max() > 0.1


def test_folds_are_dark_bands_of_bounded_width(tissue):
    config = DefectConfig(folded=1.0, fold_vx=12)
    folded, _ = change(tissue, config)
    dark = folded < 0.6 * tissue
    assert (folded <= tissue + 1e-6).all()
    share = dark.float().mean((-2, -1)).flatten()
    assert share.max() < 0.25 and 0.02 < share.median() < 0.2
    wide, _ = change(tissue, dataclasses.replace(config, fold_vx=24))
    assert (wide < 0.6 * tissue).float().mean() > 1.5 * share.mean()
    # A band: dark voxels have dark neighbours.
    assert (dark[..., 1:] == dark[..., :-1]).float().mean() > 0.95


def test_stitched_slices_have_two_brightnesses_with_a_straight_seam():
    even = torch.full((1, 200, 64, 64), 0.5)
    even += 0.1 * torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    stitched, uniform = change(even, DefectConfig(stitched=1.0))
    how = uniform[0, :, 5:]
    for image, before, one in zip(stitched[0], even[0], how, strict=True):
        if one[3] < 0.3 or not 0.2 < one[1] < 0.8 or one[2] >= 0.5 or abs(one[5] - 0.5) < 0.2:
            continue  # a corner, a seam elsewhere or hardly one
        column = (image - before).mean(0)
        seam = int(column.diff().abs().argmax())
        assert abs(seam - 64 * float(one[1])) < 2


def test_slices_of_a_batch_do_not_know_each_other(tissue):
    config = DefectConfig(**dict.fromkeys(KINDS, 0.5))
    whole, uniform = change(tissue, config)
    alone = damage(tissue[2:3].clone(), uniform[2:3], config)
    torch.testing.assert_close(lose(alone, uniform[2:3], config), whole[2:3])


def test_wrong_figures_are_refused():
    with pytest.raises(ValueError, match="folded is a probability, wanted 0 to 1, got 2"):
        DefectConfig(folded=2)
    with pytest.raises(ValueError, match="fold_vx must be above 0"):
        DefectConfig(fold_vx=0)

import importlib
import sys
import types

import numpy as np
import pytest
from em_data import Box, open_volume
from em_train.restore import baselines
from em_train.restore.baselines import (
    Baseline,
    background,
    denoising,
    destriped,
    enlarged,
    gaussian,
    rolling_ball,
    sampling,
    tune,
)
from em_train.restore.scores import psnr
from scipy import ndimage
from skimage.restoration import rolling_ball as their_ball


def cells(rng, shape=(96, 112)):
    """Smooth areas with edges between, in [0, 1]."""
    coarse = ndimage.gaussian_filter(rng.standard_normal(shape), 6)
    return 0.3 + 0.4 * (coarse > 0) + 0.3 * (np.abs(coarse) < 0.2 * coarse.std())


def pairs(rng, count, sigma=0.1, **shape):
    truth = [cells(rng, **shape) for _ in range(count)]
    return [one + sigma * rng.standard_normal(one.shape) for one in truth], truth


def gained(restore, noisy, truth):
    """PSNR after and before."""
    return [
        np.mean([psnr(one(n), t, data_range=1.0) for n, t in zip(noisy, truth, strict=True)])
        for one in (restore, lambda image: image)
    ]


def test_every_filter_of_noise_gains_on_slices_it_was_not_tuned_on():
    rng = np.random.default_rng(0)
    noisy, truth = pairs(rng, 3)
    found = tune(denoising(), noisy[:1], truth[:1], crop_vx=64)
    assert len({one.name for one in found}) == len(found) >= 8
    for one in found:
        after, before = gained(one, noisy[1:], truth[1:])
        # Destriping costs where there are no stripes.
        assert after > before + (1 if "destriped" in one.name else 2.5), one
        assert all(str(value) in str(one) for value in one.settings.values())


def test_settings_are_the_best_of_all_combinations():
    rng = np.random.default_rng(1)
    noisy, truth = pairs(rng, 2)
    seen = []

    def function(image, *, a, b):
        seen.append((a, b))
        return image + (a - 2) ** 2 + (b - 0.5) ** 2

    grid = {"a": (1, 2, 3), "b": (0.5, 0.7)}
    baseline = Baseline(name="one", function=function, grid=grid)
    (found,) = tune([baseline], noisy, truth)
    assert found.settings == {"a": 2, "b": 0.5}
    assert set(seen) == {(a, b) for a in grid["a"] for b in grid["b"]} and len(seen) == 12
    assert str(found) == "one: a 2, b 0.5"


def test_without_truth_settings_are_nearly_as_good():
    rng = np.random.default_rng(2)
    noisy, truth = pairs(rng, 2)
    sigmas = {"sigma": (0.3, 0.6, 0.8, 1.2, 2.4, 5.0)}
    baseline = Baseline(name="gaussian", function=gaussian, grid=sigmas)
    (known,), (blind,) = tune([baseline], noisy, truth), tune([baseline], noisy)
    values = sigmas["sigma"]
    apart = values.index(known.settings["sigma"]) - values.index(blind.settings["sigma"])
    assert abs(apart) <= 1 and blind.settings["sigma"] not in (values[0], values[-1])
    assert gained(blind, noisy, truth)[0] > gained(known, noisy, truth)[0] - 0.7


def test_destriping_takes_offsets_of_rows_away_and_keeps_slow_change():
    rng = np.random.default_rng(3)
    image = np.full((200, 64), 0.5) + np.linspace(0, 0.3, 200)[:, None]
    striped = image + 0.1 * rng.standard_normal((200, 1))
    found = destriped(striped, keep=16.0)
    assert np.abs(found - image)[20:-20].mean() < 0.02 < np.abs(striped - image).mean()
    noisy, truth = pairs(rng, 2)
    offsets = [0.15 * rng.standard_normal((len(one), 1)) for one in noisy]
    noisy = [one + offset for one, offset in zip(noisy, offsets, strict=True)]
    chosen = {
        one.name: gained(one, noisy, truth)[0]
        for one in tune(denoising(), noisy, truth)
        if "gaussian" in one.name
    }
    assert chosen["destriped gaussian"] > chosen["gaussian"] + 0.5


def test_a_stack_is_restored_at_its_middle():
    rng = np.random.default_rng(4)
    noisy, truth = pairs(rng, 3)
    (found,) = tune([Baseline(name="g", function=gaussian, grid={"sigma": (1.0,)})], noisy, truth)
    np.testing.assert_array_equal(found(np.stack(noisy)), found(noisy[1]))


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarging_keeps_places(factor):
    y, x = (np.arange(n) / n for n in (64, 96))
    fine = 0.5 + 0.3 * np.sin(4 * y[:, None] + 5 * x)
    coarse = fine.reshape(64 // factor, factor, 96 // factor, factor).mean((1, 3))
    inside = (slice(3 * factor, -3 * factor),) * 2
    for one in tune(sampling(factor), [coarse], [fine]):
        assert one.settings == {"factor": factor}
        np.testing.assert_allclose(one(coarse)[inside], fine[inside], atol=0.01)
    shifted = np.roll(fine, 1, 1)
    assert np.abs(enlarged(coarse, factor=factor, kind="bicubic") - shifted)[inside].max() > 0.01


def test_background_is_taken_away():
    rng = np.random.default_rng(5)
    truth = [0.5 + ndimage.gaussian_filter(rng.standard_normal((128, 128)), 1) for _ in range(2)]
    y, x = np.mgrid[:128, :128] / 128
    uneven = [one + 0.3 * y + 0.2 * x * y for one in truth]
    for one in tune(background(), uneven, truth):
        after, before = gained(
            one, uneven, [t + u.mean() - t.mean() for t, u in zip(truth, uneven, strict=True)]
        )
        assert after > before + 3, one
        assert one(uneven[0]).mean() == pytest.approx(uneven[0].mean(), abs=0.02)


def test_the_rolling_ball_is_that_of_scikit_image():
    rng = np.random.default_rng(6)
    image = ndimage.gaussian_filter(rng.random((60, 50)), 1)
    ball = their_ball(image * 255, radius=10) / 255  # of grey values of 8 bits, as in ImageJ
    np.testing.assert_allclose(
        rolling_ball(image, radius=10), image - ball + ball.mean(), atol=1e-5
    )
    smooth = ndimage.gaussian_filter(rng.random((120, 130)), 8) * 4
    whole = their_ball(smooth * 255, radius=40) / 255
    shrunk = smooth - rolling_ball(smooth, radius=40)
    assert np.abs((shrunk - shrunk.mean()) - (whole - whole.mean())).max() < 0.1 * np.ptp(smooth)


def test_bm3d_is_there_where_it_works(monkeypatch):
    def plain(image, sigma_psd):
        return ndimage.gaussian_filter(image, 10 * sigma_psd)

    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d=plain))
    (found,) = [one for one in denoising() if one.name == "BM3D"]
    image = np.random.default_rng(7).random((20, 20))
    np.testing.assert_array_equal(found.function(image, sigma=0.1), plain(image, 0.1))

    def broken(image, sigma_psd):
        raise AttributeError("module 'numpy' has no attribute 'trapz'")

    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d=broken))
    assert "BM3D" not in [one.name for one in denoising()]
    monkeypatch.setitem(sys.modules, "bm3d", None)
    assert "BM3D" not in [one.name for one in denoising()]


@pytest.mark.parametrize("missing", ["skimage", "pywt"])
def test_a_missing_library_is_named_with_its_remedy(monkeypatch, missing):
    plain = importlib.import_module

    def absent(name, *rest):
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return plain(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        ImportError, match=rf"{missing}, .*; install it: pip install 'em-train\[restore\]'"
    ):
        baselines.wavelets(np.zeros((8, 8)), method="BayesShrink", sigma=0.1)


def test_slices_and_truth_belong_together():
    with pytest.raises(ValueError, match="2 slices to choose settings on and 1 of truth"):
        tune(denoising(), [np.zeros((8, 8))] * 2, [np.zeros((8, 8))])
    with pytest.raises(ValueError, match="0 slices"):
        tune(denoising(), [])


def test_on_real_tissue_destriping_wins_over_row_noise(real_data):
    volume = open_volume(str(real_data / "vnc_sstem.zarr" / "raw"))
    rng = np.random.default_rng(8)
    truth, noisy = [], []
    for z in (10, 12):
        plane = volume.read(Box((z, 0, 0), (1, 1024, 1024)))[0] / 255.0
        truth.append(plane.reshape(512, 2, 512, 2).mean((1, 3)))  # 9.2 nm
        shot = rng.poisson(truth[-1] * 40) / 40
        noisy.append(shot + 0.1 * rng.standard_normal((512, 1)))
    wanted = [
        one for one in denoising() if one.name in ("median", "gaussian", "destriped gaussian")
    ]
    found = tune(wanted, noisy[:1], truth[:1])
    after = {one.name: gained(one, noisy[1:], truth[1:])[0] for one in found}
    before = gained(found[0], noisy[1:], truth[1:])[1]
    assert before < after["median"] < after["gaussian"] < after["destriped gaussian"] - 1

import dataclasses

import numpy as np
import pytest
import torch
from em_data import Key
from em_data.augment import (
    BACKGROUND,
    KINDS,
    NOISE,
    SAMPLING,
    DegradeConfig,
    degrade,
    only,
)
from em_data.synthetic import SyntheticConfig, render
from scipy import ndimage, stats

FREE = DegradeConfig(clip=False)


def keys(count, first=0):
    return [Key(0, first + n) for n in range(count)]


def alone(kind, **ranges):
    return dataclasses.replace(FREE, **{kind: 1.0}, **ranges)


def flat(value, shape=(4, 1, 200, 240)):
    return torch.full(shape, value)


@pytest.fixture(scope="module")
def tissue():
    """(4, 2, 96, 90) in [0, 1]."""
    raw = render(SyntheticConfig(shape_vx=(8, 96, 90))).raw.reshape(4, 2, 96, 90)
    return torch.from_numpy(raw.astype(np.float32) / 255)


@pytest.mark.parametrize("electrons", [8, 30, 200])
def test_dose_gives_counts_with_the_mean_and_variance_of_poisson(electrons):
    config = alone("dose", dose_electrons=(electrons, electrons))
    for grey in (0.5, 1.0):
        counts = degrade(flat(grey), keys(4), config, seed=1).double() * electrons
        expected = stats.poisson(grey * electrons)
        assert counts.mean().item() == pytest.approx(expected.mean(), rel=0.005)
        assert counts.var().item() == pytest.approx(
            expected.var(), rel=0.25 / electrons / grey + 0.01
        )


def test_doses_are_drawn_evenly_on_a_logarithmic_scale():
    config = alone("dose", dose_electrons=(10, 1000))
    noisy = degrade(flat(0.5, (300, 1, 40, 40)), keys(300), config, seed=1).double()
    doses = 0.5 / noisy.var((1, 2, 3))
    share = (torch.log(doses / 10) / np.log(100)).clamp(0, 1)
    assert stats.kstest(share.numpy(), "uniform").pvalue > 0.01


def test_detector_noise_is_normal_with_the_deviation_drawn():
    config = alone("detector", detector_strength=(0.02, 0.1))
    noise = degrade(flat(0.5, (100, 1, 64, 64)), keys(100), config, seed=1).double() - 0.5
    deviations = noise.std((1, 2, 3))
    assert stats.kstest((deviations.numpy() - 0.02) / 0.08, "uniform").pvalue > 0.01
    standard = (noise / deviations[:, None, None, None]).flatten()
    assert stats.kstest(standard[::7].numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("length", [0.0, 2.0, 6.0])
def test_scan_noise_is_correlated_along_rows_only(length):
    config = alone("scan", scan_offset=(0, 0), scan_strength=(0.05, 0.05), scan_vx=(length, length))
    noise = degrade(flat(0.5, (8, 1, 300, 300)), keys(8), config, seed=2).double() - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise[..., :3].std().item() == pytest.approx(0.05, rel=0.05)  # from the first pixel on
    variance = noise.var()
    for lag in (1, 2, 5):
        along = (noise[..., lag:] * noise[..., :-lag]).mean() / variance
        expected = np.exp(-lag / length) if length else 0.0
        assert along.item() == pytest.approx(expected, abs=0.02)
        across = (noise[..., lag:, :] * noise[..., :-lag, :]).mean() / variance
        assert abs(across.item()) < 0.02


def test_rows_of_a_scan_have_offsets_of_their_own():
    config = alone("scan", scan_offset=(0.04, 0.04), scan_strength=(0, 0))
    noise = degrade(flat(0.5, (20, 1, 300, 20)), keys(20), config, seed=2).double() - 0.5
    assert noise.std(-1).max() < 1e-6
    offsets = noise[..., 0]
    assert offsets.std().item() == pytest.approx(0.04, rel=0.04)
    assert abs((offsets[..., 1:] * offsets[..., :-1]).mean() / offsets.var()) < 0.05


def test_curtains_are_stripes_that_multiply_and_change_slowly_along_y():
    config = alone(
        "curtains",
        curtains_strength=(0.05, 0.05),
        curtains_vx=(3, 3),
        curtains_length_vx=(400, 400),
    )
    dark, bright = (
        degrade(flat(grey, (12, 1, 401, 300)), keys(12), config, seed=3).double()
        for grey in (0.2, 0.6)
    )
    torch.testing.assert_close(bright, 3 * dark)
    stripes = (bright / 0.6).log()
    assert stripes.std().item() == pytest.approx(0.05, rel=0.06)
    variance = stripes.var()
    for lag in (1, 100, 400):  # a profile turns by a radian over 400
        down = (stripes[..., lag:, :] * stripes[..., :-lag, :]).mean() / variance
        assert down.item() == pytest.approx(np.cos(lag / 400), abs=0.06)
    across = (stripes[..., 3:] * stripes[..., :-3]).mean() / variance
    assert across.item() == pytest.approx(np.exp(-1), abs=0.06)
    endless = dataclasses.replace(config, curtains_length_vx=(1e6, 1e6))
    same = degrade(flat(0.6), keys(4), endless, seed=3)
    assert (same - same[:, :, :1]).abs().max() < 1e-3 < same.std(-1).mean()


def test_background_has_its_deviation_and_no_power_above_its_frequencies():
    config = alone("background", background_strength=(0.1, 0.1), background_vx=(40, 80))
    shown = degrade(flat(0.5, (40, 1, 320, 320)), keys(40), config, seed=4).double() - 0.5
    assert shown.std().item() == pytest.approx(0.1, rel=0.1)
    window = np.hanning(320)[:, None] * np.hanning(320)
    power = np.abs(np.fft.fft2(shown.numpy() * window)) ** 2
    f = np.hypot(np.fft.fftfreq(320)[:, None], np.fft.fftfreq(320))
    beyond = power[..., f > 1 / 40 + 3 / 320].sum() / power.sum()
    assert beyond < 1e-4
    assert power[..., (f > 1 / 80 - 1 / 320) & (f < 1 / 40 + 1 / 320)].sum() / power.sum() > 0.9


def test_background_is_partly_added_and_partly_multiplied():
    config = alone("background", background_strength=(0.05, 0.05))
    black, middle, white = (
        degrade(flat(grey, (60, 1, 64, 64)), keys(60), config, seed=4).double() - grey
        for grey in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(black + white, 2 * middle, atol=1e-6, rtol=0)
    gain = 1 - (black / middle).flatten(1).median(1).values  # 0 where all is added
    assert stats.kstest(gain.numpy(), "uniform").pvalue > 0.01


def test_charging_brightens_around_bright_places_and_darkens_behind_them():
    image = flat(0.3, (30, 1, 160, 240))
    image[..., 72:88, 80:96] = 0.8
    config = alone("charging", charging_strength=(0.1, 0.1))
    change = (degrade(image, keys(30), config, seed=5) - image).mean((0, 1))
    around, behind = change[80, 72], change[80, 130]
    assert 0.02 < around < 0.1 and behind < -0.01
    assert change[80, 30].abs() < 0.005  # nothing far before it,
    assert change[10].abs().max() < 0.005  # nor far above
    assert change[56, 88] > 0.5 * change[80, 72] > 0  # halos are round, streaks narrow
    even = flat(0.3, (2, 1, 64, 64))
    torch.testing.assert_close(degrade(even, keys(2), config, seed=5), even)


def test_defocus_is_a_gaussian_blur(tissue):
    config = alone("defocus", defocus_vx=(1.4, 1.4))
    shown = degrade(tissue, keys(4), config, seed=6).double().numpy()
    expected = ndimage.gaussian_filter(tissue.double().numpy(), (0, 0, 1.4, 1.4), truncate=3.5)
    inside = (..., slice(8, -8), slice(8, -8))
    np.testing.assert_allclose(shown[inside], expected[inside], atol=2e-3)
    assert np.abs(shown - tissue.numpy()).mean() > 0.01


@pytest.mark.parametrize("factor", [2, 4])
def test_coarser_sampling_takes_means_and_interpolates_between_their_centres(tissue, factor):
    config = alone("sampling", sampling_factors=(factor,))
    shown = degrade(tissue, keys(4), config, seed=6).double().numpy()
    image = tissue.double().numpy()[:, :, : 96 // factor * factor, : 90 // factor * factor]
    b, z, y, x = image.shape
    coarse = image.reshape(b, z, y // factor, factor, x // factor, factor).mean((3, 5))
    places = [(np.arange(n) + 0.5) / factor - 0.5 for n in (y, x)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    expected = np.stack([
        [ndimage.map_coordinates(one, grid, order=1, mode="nearest") for one in sample]
        for sample in coarse
    ])  # fmt: skip
    edge = factor  # the last pixel is that of fewer voxels where the side is no multiple
    np.testing.assert_allclose(
        shown[:, :, : y - edge, : x - edge], expected[:, :, : y - edge, : x - edge], atol=1e-6
    )


def test_each_of_the_factors_is_drawn_as_often_and_noise_is_that_of_coarse_pixels():
    config = dataclasses.replace(
        alone("sampling", sampling_factors=(2, 4)), detector=1, detector_strength=(0.1, 0.1)
    )
    noise = degrade(flat(0.5, (200, 1, 32, 32)), keys(200), config, seed=6) - 0.5
    lag = (noise[..., 1:] * noise[..., :-1]).mean((1, 2, 3)) / noise.var((1, 2, 3))
    # Neighbours share .75 of white noise that was interpolated by 2, and .92 of that by 4.
    four = (lag > 0.84).float().mean().item()
    assert lag.min() > 0.6 and 0.38 < four < 0.62


def test_hot_pixels_are_white_and_as_many_as_asked():
    config = alone("hot", hot_share=(2e-3, 2e-3))
    shown = degrade(flat(0.4, (40, 2, 100, 100)), keys(40), config, seed=7)
    hot = shown == 1
    assert ((shown == np.float32(0.4)) | hot).all()
    assert hot.float().mean().item() == pytest.approx(2e-3, rel=0.1)
    assert len(hot.flatten(1).sum(1).unique()) > 5  # a number of each sample


def test_lost_rows_are_black_from_end_to_end():
    config = alone("lost", lost_share=(0.05, 0.05))
    shown = degrade(flat(0.4, (40, 2, 100, 30)), keys(40), config, seed=7)
    black = shown == 0
    assert torch.equal(black.any(-1), black.all(-1))
    assert ((shown == np.float32(0.4)) | black).all()
    assert black.float().mean().item() == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_befalls_as_many_samples_as_asked_and_leaves_the_others(tissue, kind):
    images = tissue[:1].expand(120, -1, -1, -1)
    config = dataclasses.replace(alone(kind), **{kind: 0.3}, hot_share=(0.01, 0.01))
    config = dataclasses.replace(config, lost_share=(0.1, 0.1), detector_strength=(0.01, 0.05))
    changed = (degrade(images, keys(120), config, seed=8) != images).flatten(1).any(1)
    assert 0.18 < changed.float().mean() < 0.42


EVERYTHING = only(
    DegradeConfig(sampling_factors=(2, 3), hot_share=(0.01, 0.02)), KINDS, probability=0.6
)


def test_a_sample_depends_on_its_key_alone_and_images_stay(tissue):
    before = tissue.clone()
    whole = degrade(tissue, keys(4), EVERYTHING, seed=9)
    assert torch.equal(tissue, before)
    assert torch.equal(whole, degrade(tissue, keys(4), EVERYTHING, seed=9))
    order = [2, 0, 3]
    mixed = degrade(tissue[order], [keys(4)[i] for i in order], EVERYTHING, seed=9)
    torch.testing.assert_close(mixed, whole[order], atol=1e-6, rtol=0)
    turned = tissue.mT.contiguous().mT  # the same images, stored in another order
    torch.testing.assert_close(degrade(turned, keys(4), EVERYTHING, seed=9), whole)
    for other in (
        degrade(tissue, keys(4, first=4), EVERYTHING, seed=9),
        degrade(tissue, keys(4), EVERYTHING, seed=10),
        degrade(tissue, keys(4), EVERYTHING, seed=9, copy=1),
    ):
        assert (other != whole).flatten(1).any(1).all()


@pytest.mark.parametrize("kind", [*NOISE, "background", "curtains"])
def test_copies_have_fields_that_share_nothing_of_equal_strength(kind):
    config = dataclasses.replace(
        alone(kind), dose_electrons=(5, 500), background_vx=(16, 24), scan_strength=(0.01, 0.2)
    )
    config = dataclasses.replace(config, hot_share=(1e-3, 0.1), lost_share=(0.05, 0.3))
    images = flat(0.5, (24, 1, 128, 128))
    a, b = (
        degrade(images, keys(24), config, seed=11, copy=copy).double().flatten(1) - 0.5
        for copy in (0, 1)
    )
    strengths = torch.corrcoef(torch.stack([a.std(1), b.std(1)]).log())[0, 1]
    assert strengths > 0.7  # about 0 if a copy drew its own
    a, b = (one - one.mean(1, keepdim=True) for one in (a, b))
    between = (a * b).mean(1) / (a.std(1) * b.std(1))
    assert abs(between.mean().item()) < 0.05


@pytest.mark.parametrize("kind", [*SAMPLING, "charging"])
def test_copies_share_their_optics(tissue, kind):
    config = alone(kind)
    first, second = (degrade(tissue, keys(4), config, seed=11, copy=copy) for copy in (0, 1))
    assert torch.equal(first, second) and not torch.equal(first, tissue)


def test_only_switches_the_other_kinds_off_and_leaves_their_numbers(tissue):
    assert {*SAMPLING, *BACKGROUND, *NOISE} == set(KINDS) and len(KINDS) == 10
    noise = only(EVERYTHING, NOISE)
    assert {kind for kind in KINDS if getattr(noise, kind)} == set(NOISE)
    assert only(EVERYTHING, ["dose"]).dose == 0.6
    assert only(EVERYTHING, ["dose"], probability=0.25).dose == 0.25
    # A kind draws the same whether others are on or not.
    one = dataclasses.replace(alone("lost"), lost_share=(0.2, 0.2))
    two = dataclasses.replace(one, background=1.0, hot=1.0)
    assert torch.equal(
        degrade(tissue, keys(4), one, seed=1) == 0, degrade(tissue, keys(4), two, seed=1) == 0
    )
    with pytest.raises(ValueError, match="no degradation rain, snow; there are defocus, "):
        only(EVERYTHING, ["rain", "dose", "snow"])


def test_the_result_is_float32_and_cut_only_where_asked():
    config = alone("detector", detector_strength=(0.5, 0.5))
    images = flat(0.9).to(torch.float16)
    free = degrade(images, keys(4), config, seed=1)
    cut = degrade(images, keys(4), dataclasses.replace(config, clip=True), seed=1)
    assert free.dtype == cut.dtype == torch.float32
    assert free.max() > 1.5 and free.mean().item() == pytest.approx(0.9, abs=0.01)
    assert torch.equal(cut, free.clamp(0, 1))
    assert degrade(images[:0], [], config, seed=1).shape == (0, 1, 200, 240)


def test_wrong_input_is_refused():
    config, images = DegradeConfig(), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"uint8 of shape \(2, 1, 8, 8\); wanted floats"):
        degrade(images.byte(), keys(2), config, seed=0)
    with pytest.raises(ValueError, match=r"wanted floats \(B, Z, Y, X\)"):
        degrade(images[0], keys(1), config, seed=0)
    with pytest.raises(ValueError, match="one key for each of 2 images, got 3"):
        degrade(images, keys(3), config, seed=0)
    with pytest.raises(ValueError, match="wanted 0 or more, got -1"):
        degrade(images, keys(2), config, seed=0, copy=-1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dose": 2}, "dose is a probability, wanted 0 to 1, got 2"),
        ({"scan": float("nan")}, "scan is a probability"),
        ({"dose_electrons": (0, 10)}, r"dose_electrons must be a pair .* within 1 to 1e\+06"),
        ({"defocus_vx": (2, 1)}, r"defocus_vx must be a pair \(low, high\).*got \(2, 1\)"),
        ({"scan_vx": (1,)}, "scan_vx must be a pair"),
        ({"hot_share": (0, 0.1)}, "hot_share must be a pair"),
        ({"sampling_factors": ()}, r"whole numbers from 2 to 16, got \(\)"),
        ({"sampling_factors": (2, 2.5)}, "sampling_factors must be whole numbers"),
    ],
)
def test_wrong_figures_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DegradeConfig(**wrong)

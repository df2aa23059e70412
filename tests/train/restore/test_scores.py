import math

import numpy as np
import pytest
from em_data import Box, open_volume
from em_train.restore.scores import (
    agreement,
    blank_contrast,
    frc,
    frequencies,
    gap,
    invented,
    invented_by_octave,
    linear_twin,
    psnr,
    resolution,
    ring_count,
    rings,
    si_psnr,
    ssim,
)
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

SHAPE = (192, 208)


def tissue(rng, shape=SHAPE, exponent=1.2):
    """Random images whose amplitudes fall as those of tissue do, with mean .5 and σ .2."""
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) * radius**-exponent
    image = np.fft.irfft2(spectrum, shape)
    return 0.5 + 0.2 * image / image.std()


def doses(truth, rng, electrons=40):
    return rng.poisson(truth.clip(0) * electrons) / electrons


def rows(truth, rng):
    offsets = rng.standard_normal((len(truth), 1))
    along = ndimage.gaussian_filter1d(rng.standard_normal(truth.shape), 8, axis=1)
    return doses(truth, rng) + 0.07 * offsets + 0.07 * along / along.std()


def white(truth, rng):
    return truth + 0.15 * rng.standard_normal(truth.shape)


def sums_of(truths, degrade, restore, rng):
    """Agreement of all slices together."""
    count = ring_count(*(truth.shape for truth in truths))
    return sum(
        agreement(restore(degrade(t, rng)), restore(degrade(t, rng)), t, count) for t in truths
    )


# Grey values


def test_psnr_and_ssim_equal_scikit_image():
    rng = np.random.default_rng(0)
    truth = tissue(rng)
    restored = white(truth, rng)
    for data_range in (1.0, 2.0):
        theirs = peak_signal_noise_ratio(truth, restored, data_range=data_range)
        assert psnr(restored, truth, data_range=data_range) == pytest.approx(theirs)
        theirs = structural_similarity(
            truth,
            restored,
            data_range=data_range,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(restored, truth, data_range=data_range) == pytest.approx(theirs, abs=1e-5)
    assert psnr(truth, truth, data_range=1) == math.inf


def test_scale_invariant_psnr_is_that_of_the_best_line():
    rng = np.random.default_rng(1)
    truth = tissue(rng)
    restored = 0.3 * white(truth, rng) + 0.4
    design = np.stack([restored.ravel(), np.ones(restored.size)], 1)
    fitted, *_ = np.linalg.lstsq(design, truth.ravel(), rcond=None)
    theirs = peak_signal_noise_ratio(truth, (design @ fitted).reshape(truth.shape), data_range=1.0)
    assert si_psnr(restored, truth, data_range=1.0) == pytest.approx(theirs)
    assert si_psnr(restored, truth, data_range=1.0) > psnr(restored, truth, data_range=1.0) + 2
    flat = si_psnr(np.ones(SHAPE), truth, data_range=1.0)
    assert flat == pytest.approx(-20 * math.log10(truth.std()))


# Rings


@pytest.mark.parametrize("shape", [(24, 24), (24, 31), (21, 26)])
def test_ring_sums_equal_loops_over_the_whole_spectrum(shape):
    rng = np.random.default_rng(2)
    a, b = rng.random(shape), rng.random(shape)
    count = ring_count(shape)
    hann = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in shape]
    window = np.outer(*hann)
    spectra = [np.fft.fft2((one - (one * window).sum() / window.sum()) * window) for one in (a, b)]
    expected = np.zeros((3, count))
    for i, y in enumerate(np.fft.fftfreq(shape[0])):
        for j, x in enumerate(np.fft.fftfreq(shape[1])):
            radius = math.hypot(y, x)
            if 0 < radius <= 0.5:
                ring = max(1, round(radius * 2 * count)) - 1
                f, g = spectra[0][i, j], spectra[1][i, j]
                expected[:, ring] += ((f * g.conjugate()).real, abs(f) ** 2, abs(g) ** 2)
    np.testing.assert_allclose(rings(a, b, count), expected, rtol=1e-9, atol=1e-9)
    assert frequencies(count)[-1] == 0.5


def test_correlation_is_one_of_itself_and_follows_the_signal_to_noise():
    rng = np.random.default_rng(3)
    truth = tissue(rng, (256, 256), exponent=0)  # white, σ .2
    count = 32
    np.testing.assert_allclose(frc(rings(truth, 3 * truth + 1, count)), 1)
    np.testing.assert_allclose(frc(rings(truth, -truth, count)), -1)
    noisy = [truth + 0.2 * rng.standard_normal(truth.shape) for _ in range(2)]
    assert frc(rings(*noisy, count)).mean() == pytest.approx(0.5, abs=0.02)
    assert frc(rings(noisy[0], truth, count)).mean() == pytest.approx(0.5**0.5, abs=0.02)
    assert not frc(rings(truth, np.zeros_like(truth), count)).any()


def test_resolution_lies_where_the_curve_falls_below():
    curve = np.linspace(1, 0, 50)  # 1 at .01 cycles per pixel, 0 at .5
    expected = 0.01 + (0.5 - 0.01) * (1 - 1 / 7)
    assert resolution(curve) == pytest.approx(1 / expected)
    assert resolution(curve, pixel=8.0) == pytest.approx(8 / expected)
    assert resolution(np.ones(50)) == 2
    assert resolution(np.zeros(50)) == math.inf
    without_background = curve.copy()
    without_background[:2] = 0
    assert resolution(without_background) == pytest.approx(1 / expected)


def test_resolution_follows_a_cut_spectrum():
    rng = np.random.default_rng(4)
    truth = tissue(rng, (256, 256), exponent=0)
    radius = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    low = np.fft.irfft2(np.fft.rfft2(truth) * (radius < 0.125), truth.shape)
    restored = low + 0.05 * rng.standard_normal(truth.shape)
    assert resolution(frc(rings(restored, truth, 128))) == pytest.approx(8, abs=0.3)


# What is invented

LINEAR = {
    "nothing": lambda image: image,
    "gaussian": lambda image: ndimage.gaussian_filter(image, 1.0),
    "wide gaussian": lambda image: ndimage.gaussian_filter(image, 3.0),
    "sharpened": lambda image: 2.5 * image - 1.5 * ndimage.gaussian_filter(image, 2.0),
    "darker": lambda image: 0.3 * ndimage.gaussian_filter(image, 1.0) + 0.1,
}


@pytest.mark.parametrize("degrade", [white, doses, rows])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_filters_invent_nothing(degrade, name):
    rng = np.random.default_rng(5)
    truths = [tissue(rng) for _ in range(4)]
    sums = sums_of(truths, degrade, LINEAR[name], rng)
    assert abs(gap(sums)) <= 0.02
    assert abs(invented(sums)) <= 0.02


@pytest.mark.parametrize("exponent", [0.5, 1.2])
def test_a_planted_texture_is_found(exponent):
    rng = np.random.default_rng(6)
    truths = [tissue(rng) for _ in range(4)]
    texture = tissue(rng, exponent=exponent) - 0.5

    def restore(image, strength):
        return ndimage.gaussian_filter(image, 1.0) + strength * texture

    found = [
        sums_of(truths, doses, lambda image, s=s: restore(image, s), rng) for s in (0, 0.5, 1.5)
    ]
    gaps, shares = ([float(measure(one)) for one in found] for measure in (gap, invented))
    assert gaps[0] <= 0.02 < 0.08 < gaps[1] < gaps[2] and gaps[2] >= 0.3
    # A texture of r times the truth's contrast has r² / (1 + r²) of the power.
    assert shares[1] == pytest.approx(0.2, abs=0.06) and shares[2] == pytest.approx(0.69, abs=0.08)


def test_a_faint_fine_texture_shows_in_its_octave():
    rng = np.random.default_rng(7)
    truths = [tissue(rng) for _ in range(4)]
    grain = rng.standard_normal(SHAPE)
    grain = ndimage.gaussian_filter(grain, 0.5) - ndimage.gaussian_filter(grain, 1.0)
    grain *= 0.02 / grain.std()  # a tenth of the contrast
    sums = sums_of(truths, white, lambda i: ndimage.gaussian_filter(i, 1.0) + grain, rng)
    assert gap(sums) < 0.02
    octaves = invented_by_octave(sums)
    assert octaves[0] > 0.5 and octaves[-1] < 0.02
    none = invented_by_octave(sums_of(truths, white, LINEAR["wide gaussian"], rng))
    assert np.isnan(none[0]) and abs(none[-1]) < 0.02  # nothing fine is left, nothing is invented


def test_invention_is_one_where_the_truth_plays_no_part():
    rng = np.random.default_rng(8)
    truths = [tissue(rng) for _ in range(4)]
    other = tissue(rng)
    sums = sums_of(truths, white, lambda image: other + 0.01 * image, rng)
    assert gap(sums) > 0.9 and invented(sums) > 0.9
    nothing = sums_of(truths, white, lambda image: image * 0, rng)
    assert np.isnan(gap(nothing)) and np.isnan(invented(nothing))


def test_the_gap_of_a_single_band_is_the_plain_difference():
    """With one band there is no weighting left: √FRC(A, B) − FRC(A, T), A and B in turn."""
    rng = np.random.default_rng(14)
    truth, other = tissue(rng), tissue(rng)
    a, b = (truth + 0.5 * other + white(0 * truth, rng) for _ in range(2))
    pairs = [frc(rings(*pair, 1))[0] for pair in ((a, b), (a, truth), (b, truth))]
    expected = math.sqrt(pairs[0]) - (pairs[1] + pairs[2]) / 2
    assert float(gap(agreement(a, b, truth, 1))) == pytest.approx(expected)
    assert expected > 0.05


def test_stripes_removed_are_a_known_weakness():
    """Filters that depend on direction are not at 0: the guide says so, and by how much."""
    rng = np.random.default_rng(9)
    truths = [tissue(rng) for _ in range(4)]
    sums = sums_of(truths, doses, lambda i: ndimage.gaussian_filter(i, (1, 4)), rng)
    assert 0 < gap(sums) < 0.05 and 0 < invented(sums) < 0.1


def test_the_linear_twin_has_the_spectrum_and_no_invention():
    rng = np.random.default_rng(10)
    truths = [tissue(rng) for _ in range(4)]
    texture = tissue(rng) - 0.5

    def restore(image):
        return ndimage.median_filter(image, 5) + texture

    def twin(image):
        return linear_twin(image, restore(image))

    image = doses(truths[0], rng)
    count = ring_count(SHAPE)
    _, power, wanted = rings(twin(image), restore(image), count)
    assert power[2:].sum() == pytest.approx(wanted[2:].sum(), rel=0.1)
    assert twin(image).mean() == pytest.approx(restore(image).mean())
    assert abs(gap(sums_of(truths, doses, twin, rng))) <= 0.02
    assert gap(sums_of(truths, doses, restore, rng)) > 0.2


def test_sums_of_draws_are_those_of_each():
    rng = np.random.default_rng(11)
    truths = [tissue(rng) for _ in range(3)]
    each = np.stack([sums_of([t], doses, LINEAR["gaussian"], rng) for t in truths])
    for measure in (gap, invented):
        assert measure(each).shape == (3,)
        np.testing.assert_allclose(measure(each)[1], measure(each[1]))
    np.testing.assert_allclose(invented_by_octave(each)[2], invented_by_octave(each[2]))


def test_images_of_different_sizes_have_the_same_rings():
    rng = np.random.default_rng(12)
    truths = [tissue(rng, shape) for shape in ((96, 130), (150, 101), (200, 200))]
    sums = sums_of(truths, white, LINEAR["gaussian"], rng)
    assert sums.shape == (6, 48)
    assert abs(gap(sums)) <= 0.02


def test_blank_images_show_what_is_made_of_nothing():
    wave = np.sin(np.arange(64) / 3)
    honest = blank_contrast(lambda image: ndimage.gaussian_filter(image, 2.0), (64, 64))
    assert honest.flat < 1e-5 and 0 < honest.noise < 0.3
    same = blank_contrast(lambda image: image[1], (3, 64, 64), contrast=0.1)
    assert same.flat == 0 and same.noise == pytest.approx(1, abs=0.05)
    inventing = blank_contrast(lambda image: image * 0 + 0.1 * wave, (64, 64), contrast=0.1)
    assert inventing.flat == pytest.approx(wave.std(), rel=1e-5)


def test_what_is_no_pair_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 9\) and the truth \(9, 8\); wanted two images"):
        psnr(np.zeros((8, 9)), np.zeros((9, 8)), data_range=1.0)
    with pytest.raises(ValueError, match="wanted two images"):
        rings(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), 4)


# Real tissue


@pytest.fixture(params=["vnc_sstem.zarr/raw", "fib25.zarr/sample2_raw"])
def slices(request, real_data):
    """Four slices of real tissue and one of another volume, in [0, 1]."""
    name = request.param
    other = name.replace("sample2_raw", "sample1_raw").replace(
        "sstem.zarr/raw", "sstem.zarr/raw_unlabelled"
    )
    volumes = [open_volume(str(real_data / one)) for one in (name, other)]
    side = min(512, *volumes[0].shape[1:])
    places = ([10, 11, 12, 13], [10]) if "vnc" in name else ([50, 100, 150, 200], [50])
    return [
        [volume.read(Box((z, 0, 0), (1, side, side)))[0] / 255.0 for z in zs]
        for volume, zs in zip(volumes, places, strict=True)
    ]


@pytest.mark.parametrize("degrade", [white, doses, rows])
def test_targets_of_the_gap_hold_for_real_tissue(slices, degrade):
    truths, (other,) = slices
    rng = np.random.default_rng(13)
    for name in LINEAR:
        sums = sums_of(truths, degrade, LINEAR[name], rng)
        assert abs(gap(sums)) <= 0.02, name
    fine = rng.standard_normal(other.shape)
    fine = ndimage.gaussian_filter(fine, 1) - ndimage.gaussian_filter(fine, 2)
    for texture in (other - other.mean(), fine):
        texture = 1.2 * np.std(truths) / texture.std() * texture
        restore = lambda image, t=texture: ndimage.gaussian_filter(image, 1.5) + t  # noqa: E731
        sums = sums_of(truths, degrade, restore, rng)
        assert gap(sums) >= 0.3 and invented(sums) >= 0.5

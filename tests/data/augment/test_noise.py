import numpy as np
import pytest
import torch
from em_data.augment.noise import add_gaussian, add_poisson, normal
from scipy import stats


def words(count, seed=0):
    drawn = np.random.default_rng(seed).integers(-(2**31), 2**31, (count, 2))
    return torch.from_numpy(drawn.astype(np.int32))


def test_numbers_are_normal_independent_and_of_their_sample_alone():
    numbers = normal(words(40), (5, 41, 33)).double()
    assert stats.kstest(numbers.flatten(), "norm").pvalue > 0.01
    assert 4 < numbers.abs().max() < 4.9
    flat = numbers.flatten(1)
    for lag in (1, 2, 33, 41 * 33, flat.shape[1] // 2):
        assert abs((flat[:, lag:] * flat[:, :-lag]).mean()) < 4 / flat[:, lag:].numel() ** 0.5
    between = torch.corrcoef(flat) - torch.eye(40)
    assert between.abs().max() < 5 / flat.shape[1] ** 0.5
    assert torch.equal(normal(words(40)[7:8], (5, 41, 33))[0], normal(words(40), (5, 41, 33))[7])
    assert normal(words(1), (3,)).shape == (1, 3)


def test_similar_words_share_nothing():
    similar = torch.tensor([[5, 9], [5, 1 << 20], [4, 77777], [-5, -9]], dtype=torch.int32)
    flat = normal(similar, (20_000,)).double()
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.03
    for one in flat[1:]:  # not the same numbers in another order either
        assert len(np.intersect1d(one.numpy(), flat[0].numpy())) < 20


def test_gaussian_noise_has_the_deviation_asked_for():
    noisy = add_gaussian(torch.full((2, 1, 200, 200), 0.5), torch.tensor([0.1, 0.02]), words(2))
    assert noisy.mean((1, 2, 3)).tolist() == pytest.approx([0.5, 0.5], abs=2e-3)
    assert noisy.std((1, 2, 3)).tolist() == pytest.approx([0.1, 0.02], rel=0.02)


@pytest.mark.parametrize("count", [4, 20, 200])
def test_poisson_noise_has_the_moments_of_counts(count):
    value = torch.full((1, 1, 600, 400), 0.5)
    noisy = add_poisson(value, torch.tensor([2.0 * count]), words(1))
    counts = (noisy * 2 * count).double().flatten().numpy()
    true = stats.poisson(count)
    assert counts.mean() == pytest.approx(true.mean(), rel=0.005)
    assert counts.var() == pytest.approx(true.var(), rel=0.25 / count + 0.01)
    skewness = float(true.stats("s"))
    assert stats.skew(counts) == pytest.approx(skewness, rel=0.1, abs=0.02)
    k = np.arange(3 * count)
    measured = np.searchsorted(np.sort(counts), k + 0.5) / counts.size
    assert np.abs(measured - true.cdf(k)).max() < 0.02

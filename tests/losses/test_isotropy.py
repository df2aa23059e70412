import numpy as np
import pytest
import torch
from em_losses import draw_directions, sigreg
from em_losses.draws import generator
from scipy.integrate import quad, trapezoid


def samples(n, d=6, key=(0,), scale=1.0):
    return scale * torch.randn(n, d, generator=generator(key), dtype=torch.float64)


def statistic(x, direction):
    """N ∫ |φ_N − φ|² exp(−t²/2) dt of one projection, on the same points."""
    t = np.linspace(-5, 5, 17)
    projected = x.numpy() @ direction.numpy()
    empirical = np.exp(1j * t[:, None] * projected).mean(1)
    normal = np.exp(-(t**2) / 2)
    return len(projected) * trapezoid(np.abs(empirical - normal) ** 2 * normal, t)


def test_statistic_equals_the_reference():
    x, directions = samples(30), draw_directions(5, 6, key=(1,)).double()
    expected = np.mean([statistic(x, direction) for direction in directions])
    assert float(sigreg(x, directions, unbiased=False)) == pytest.approx(expected, rel=1e-10)


def test_statistic_has_the_closed_form_of_epps_and_pulley():
    """The integral over all t, by sums over pairs; the trapezoid rule is good to a few per mille."""
    x = samples(40, 1)[:, 0]
    z = x.numpy()
    pairs = np.exp(-((z[:, None] - z) ** 2) / 2).mean() * np.sqrt(2 * np.pi)
    cross = 2 * np.exp(-(z**2) / 4).mean() * np.sqrt(np.pi)
    expected = len(z) * (pairs - cross + np.sqrt(2 * np.pi / 3))
    got = sigreg(x[:, None], torch.ones(1, 1).double(), unbiased=False, points=201, limit=12.0)
    assert float(got) == pytest.approx(expected, rel=1e-6)
    coarse = sigreg(x[:, None], torch.ones(1, 1).double(), unbiased=False)
    assert float(coarse) == pytest.approx(expected, rel=0.02)


def test_gradients_equal_numerical_ones():
    x = samples(7, 3, scale=2.0).requires_grad_()
    directions = draw_directions(4, 3, key=(0,)).double()
    for unbiased in (True, False):
        assert torch.autograd.gradcheck(lambda x, u=unbiased: sigreg(x, directions, unbiased=u), x)


def test_unbiased_value_does_not_depend_on_the_number_of_samples():
    """Too wide by half: the value is that of the two distributions, whatever N."""
    directions = draw_directions(32, 6, key=(2,)).double()

    def integrand(t):
        return (np.exp(-(1.5**2) * t**2 / 2) - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)

    expected, _ = quad(integrand, -5, 5)
    values, published = [], []
    for n, repeats in ((8, 300), (64, 80), (1024, 10)):
        draws = [samples(n, key=(n, i), scale=1.5) for i in range(repeats)]
        values.append(np.mean([float(sigreg(x, directions)) for x in draws]))
        published.append(np.mean([float(sigreg(x, directions, unbiased=False)) for x in draws]))
    np.testing.assert_allclose(values, expected, rtol=0.15)
    assert published[2] / published[1] > 8  # the pull of the statistic grows with N
    normal = np.mean([float(sigreg(samples(8, key=(9, i)), directions)) for i in range(300)])
    assert abs(normal) < 0.1 * expected


def test_minimising_it_makes_samples_normal():
    x = (0.3 * samples(256, 2, key=(5,)) + 1).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.05)
    for step in range(150):
        optimiser.zero_grad()
        sigreg(x, draw_directions(16, 2, key=(0, step)).double()).backward()
        optimiser.step()
    assert x.mean(0).abs().max() < 0.15
    torch.testing.assert_close(torch.cov(x.detach().T), torch.eye(2).double(), atol=0.25, rtol=0)


@pytest.mark.parametrize("unbiased", [True, False])
def test_two_ranks_equal_the_global_batch(unbiased, two_ranks):
    x, directions = samples(20), draw_directions(5, 6, key=(1,)).double()

    def loss(x, **options):
        return sigreg(x, directions, unbiased=unbiased, **options)

    torch.testing.assert_close(two_ranks(loss, x), loss(x))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(1, 3\), directions \(4, 3\)"):
        sigreg(torch.randn(1, 3), torch.randn(4, 3))
    with pytest.raises(ValueError, match="wanted"):
        sigreg(torch.randn(5, 3), torch.randn(4, 2))
    with pytest.raises(ValueError, match="points is 16"):
        sigreg(torch.randn(5, 3), torch.randn(4, 3), points=16)

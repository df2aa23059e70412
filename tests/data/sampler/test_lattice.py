import numpy as np
import pytest
from em_data.sampler.lattice import lattice


def near(places, crop_vx):
    """Ordered pairs of crops with more than half in common, per crop."""
    apart = np.abs(places[:, None] - places[None]) / np.array(crop_vx)
    common = np.clip(1 - apart, 0, None).prod(2)
    return ((common > 0.5).sum() - len(places)) / len(places)


@pytest.mark.parametrize(
    ("count", "origins", "crop"),
    [
        (27, (128, 128, 128), (64, 64, 64)),
        (60, (64, 64, 64), (5, 256, 256)),
        (40, (32, 90, 17), (9, 40, 12)),
        (1, (9, 9, 9), (4, 4, 4)),
    ],
)
def test_crops_on_a_lattice_have_little_in_common(count, origins, crop):
    chosen = lattice(count, origins, crop)
    rng = np.random.default_rng(0)
    on_lattice = np.mean([near(chosen.places(rng, origins), crop) for _ in range(200)])
    alone = np.mean([near(rng.integers(0, origins, (count, 3)), crop) for _ in range(200)])
    assert on_lattice <= chosen.near + 0.05  # what it says is the most
    assert on_lattice <= 0.5 * alone


def test_every_voxel_is_equally_likely_for_every_crop():
    chosen, origins = lattice(12, (4, 5, 6), (3, 3, 3)), (4, 5, 6)
    rng = np.random.default_rng(0)
    drawn = np.stack([chosen.places(rng, origins) for _ in range(6000)])  # (6000, 12, 3)
    assert drawn.min() == 0
    for crop in (0, 7, 11):
        counts = np.zeros(origins)
        np.add.at(counts, tuple(drawn[:, crop].T), 1)
        # Pearson's statistic of a uniform draw: mean 119, deviation 15.4.
        assert ((counts - 50) ** 2 / 50).sum() < 119 + 5 * 15.4

"""Synthetic atomic lattices: functions of (seed, index) whose columns lie where the truth says."""

from dataclasses import replace

import numpy as np
import pytest
from em_data.synthetic import LatticeConfig, LatticeImage, render_lattice

SMALL = LatticeConfig(size_px=(160, 192), seed=5)
PLAIN = replace(SMALL, edges=0, boundaries=0, strain=0, vacancies=0, unequal=0)


def centroids(found: LatticeImage, margin: int) -> np.ndarray:
    """Distance of each column from the centre of the grey values of its disc, in pixels."""
    distances = []
    for number, position in enumerate(found.positions_px, 1):
        y, x = np.nonzero(found.columns == number)
        if min(*position, *(np.array(found.image.shape) - position)) < margin:
            continue
        # The logarithm of a Gaussian is a parabola; so neighbours hardly shift its middle.
        grey = np.log(found.image[y, x] - found.image.min() * 0.9)
        y, x = y - position[0], x - position[1]
        terms = np.stack([np.ones(len(y)), y, x, y * y + x * x], 1)
        _, by, bx, curve = np.linalg.lstsq(terms, grey, rcond=None)[0]
        distances.append(np.hypot(by, bx) / (-2 * curve))
    return np.array(distances)


def test_an_image_is_a_function_of_seed_and_index():
    one, again = (render_lattice(SMALL, 3) for _ in range(2))
    assert (one.image == again.image).all() and (one.columns == again.columns).all()
    for other in (render_lattice(SMALL, 4), render_lattice(replace(SMALL, seed=6), 3)):
        assert abs(one.image - other.image).mean() > 0.02


@pytest.mark.parametrize("lattice", ["square", "hexagonal", "centred", "honeycomb"])
def test_columns_are_found_where_the_truth_says(lattice):
    config = replace(SMALL, lattice=lattice, edges=0, boundaries=0)
    for index in range(2):
        found = render_lattice(config, index)
        distances = centroids(found, 8)
        assert len(distances) > 50
        assert np.quantile(distances, 0.99) < 0.2 and np.median(distances) < 0.08


@pytest.mark.parametrize(
    ("lattice", "angle", "plane"),
    [("square", 90, 1.0), ("hexagonal", 60, np.sqrt(0.75)), ("centred", 90, 1.0)],
)
def test_the_lattice_constant_is_that_of_the_spectrum(lattice, angle, plane):
    """The peaks nearest to the origin lie at 1 / distance of the planes, at the angle of the lattice."""
    config = replace(
        PLAIN, lattice=lattice, spacing_nm=(0.4, 0.4), size_px=(512, 512), second=(0.3, 0.3)
    )
    image = render_lattice(config, 1).image
    window = np.hanning(512)
    spectrum = np.abs(np.fft.fft2((image - image.mean()) * window[:, None] * window, (2048, 2048)))
    frequency = np.fft.fftfreq(2048, config.pixel_nm)
    radius = np.hypot(frequency[:, None], frequency)
    ring = np.where((radius > 1) & (radius < 1.25 / 0.4 / plane), spectrum, 0)
    peaks = []
    for _ in range(2):
        at = np.unravel_index(ring.argmax(), ring.shape)
        peaks.append(np.array([frequency[i] for i in at]))
        for sign in (1, -1):
            near = np.hypot(
                frequency[:, None] - sign * peaks[-1][0], frequency - sign * peaks[-1][1]
            )
            ring = np.where(near < 0.6, 0, ring)
    lengths = [np.hypot(*peak) for peak in peaks]
    assert 1 / np.array(lengths) == pytest.approx(0.4 * plane, rel=0.01)
    found = np.degrees(np.arccos(abs(peaks[0] @ peaks[1]) / np.prod(lengths)))
    assert found == pytest.approx(angle, abs=1)


def test_discs_are_numbered_as_the_table_is():
    found = render_lattice(SMALL, 0)
    assert found.image.dtype == np.float32 and found.columns.dtype == np.uint16
    assert found.image.min() >= 0 and found.image.max() <= 1
    for number, (y, x) in enumerate(found.positions_px, 1):
        assert found.columns[round(y), round(x)] == number
    assert (np.unique(found.columns) == np.arange(len(found.positions_px) + 1)).all()


def test_the_second_sublattice_is_fainter_and_as_frequent():
    config = replace(PLAIN, lattice="centred", second=(0.5, 0.5), size_px=(256, 256))
    found = render_lattice(config, 2)
    rows = np.rint(found.positions_px).astype(int)
    grey = found.image[tuple(rows.T)] - found.image.min()
    one, two = (grey[found.sublattices == number] for number in (1, 2))
    assert two.max() < one.min()
    assert len(one) == pytest.approx(len(two), rel=0.1)


def test_vacancies_are_missing_in_picture_and_truth():
    whole = render_lattice(PLAIN, 0)
    some = render_lattice(replace(PLAIN, vacancies=0.2), 0)
    there = {tuple(row) for row in some.positions_px}
    gone = np.array([tuple(row) not in there for row in whole.positions_px])
    assert gone.mean() == pytest.approx(0.2, abs=0.08) and (~gone).sum() == len(there)
    rows = tuple(np.rint(whole.positions_px).astype(int).T)
    assert (some.image[rows][gone] < 0.6 * whole.image[rows][gone]).all()


def test_an_edge_leaves_vacuum_and_a_boundary_turns_the_lattice():
    whole, edge, grains = (
        render_lattice(replace(PLAIN, lattice="square", **change), 7)
        for change in ({}, {"edges": 1}, {"boundaries": 1})
    )
    count = len(whole.positions_px)
    assert 0.1 * count < len(edge.positions_px) < 0.9 * count
    assert 0.8 * count < len(grains.positions_px) < 1.1 * count
    for found, least in ((whole, 0.9), (grains, 0.6)):
        away = found.positions_px[:, None] - found.positions_px
        distance = np.hypot(away[..., 0], away[..., 1]) + np.diag(np.full(len(away), np.inf))
        near = distance.min(1)
        assert near.min() > least * np.median(near)  # no two grains overlap
    # Steps to the nearest neighbour, modulo a quarter turn, have one direction in one grain.
    spreads = []
    for found in (whole, grains):
        away = found.positions_px[:, None] - found.positions_px
        distance = np.hypot(away[..., 0], away[..., 1]) + np.diag(np.full(len(away), np.inf))
        step = away[np.arange(len(away)), distance.argmin(1)]
        spreads.append(1 - abs(np.exp(4j * np.arctan2(*step.T)).mean()))
    assert spreads[0] < 1e-6 and spreads[1] > 0.05


def test_strain_has_the_deviation_that_is_asked_for():
    config = replace(PLAIN, lattice="square", spacing_nm=(0.15, 0.15), size_px=(512, 512))
    straight, bent = (render_lattice(replace(config, strain=s), 0) for s in (0, 0.02))
    y, x = straight.positions_px.T
    inner = np.minimum(np.minimum(y, x), 511 - np.maximum(y, x)) > 12
    slopes = []
    for at in straight.positions_px[inner]:
        one = np.hypot(*(bent.positions_px - at).T).argmin()
        moved = bent.positions_px[one] - at
        nearest = np.hypot(*(straight.positions_px - at).T).argsort()[1]
        beside = straight.positions_px[nearest]
        other = bent.positions_px[np.hypot(*(bent.positions_px - beside).T).argmin()] - beside
        slopes.append((other - moved) / np.hypot(*(beside - at)))
    assert np.std(slopes) == pytest.approx(0.02, rel=0.35)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lattice": "cubic"}, "wanted any, square"),
        ({"spacing_nm": (0.4, 0.3)}, "spacing_nm is"),
        ({"edges": 0.7, "boundaries": 0.7}, "at most 1"),
        ({"column_nm": 0.2}, "column_nm must lie between"),
        ({"column_nm": 0.005}, "column_nm must lie between"),
        ({"size_px": (2.5, 64)}, "size_px must be"),
        ({"size_px": (8192, 8192)}, "16 bits"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        LatticeConfig(**wrong)

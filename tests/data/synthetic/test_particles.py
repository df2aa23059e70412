"""Synthetic micrographs of particles: functions of (seed, index) whose truth fits the picture."""

from dataclasses import replace

import numpy as np
import pytest
from em_data.synthetic import ParticlesConfig, render_particles
from em_data.synthetic.outlines import draw_outline, reach_px
from skimage.measure import label
from skimage.morphology import dilation, disk, erosion

SMALL = ParticlesConfig(size_px=(160, 192), seed=5)
LOOKS, SHAPES = ("tem", "sem", "haadf"), ("spheres", "facets", "rods")


def within(instances: np.ndarray) -> np.ndarray:
    """Numbers of the particles that no border cuts."""
    rim = np.concatenate([instances[0], instances[-1], instances[:, 0], instances[:, -1]])
    return np.setdiff1d(np.unique(instances), np.append(rim, 0))


def touching(instances: np.ndarray) -> float:
    """The share of the particles that have a neighbour within a pixel."""
    count = int(instances.max())
    near = [
        np.setdiff1d(instances[dilation(instances == number, disk(1.5))], (0, number)).size > 0
        for number in range(1, count + 1)
    ]
    return sum(near) / count


def test_an_image_is_a_function_of_seed_and_index():
    one, again = (render_particles(SMALL, 3) for _ in range(2))
    assert (one.image == again.image).all() and (one.instances == again.instances).all()
    for other in (render_particles(SMALL, 4), render_particles(replace(SMALL, seed=6), 3)):
        assert abs(one.image - other.image).mean() > 0.02


@pytest.mark.parametrize("index", range(6))
def test_ids_are_particles_in_one_piece_and_numbered_without_gaps(index):
    found = render_particles(replace(SMALL, coverage=(0.2, 0.4), diameter_nm=(12, 30)), index)
    assert found.image.dtype == np.float32 and found.instances.dtype == np.uint16
    assert found.image.shape == found.instances.shape == SMALL.size_px
    assert found.image.min() >= 0 and found.image.max() <= 1
    assert (np.unique(found.instances) == np.arange(found.instances.max() + 1)).all()
    numbers = within(found.instances)
    assert len(numbers) > 3
    assert all(label(found.instances == number).max() == 1 for number in numbers)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_truth_fits_the_picture(look, shape):
    """Particles are darker than the film in TEM, brighter elsewhere; and no particle is without an id."""
    config = replace(SMALL, look=look, shape=shape, texture=0.01, uneven=0.01, holes=0)
    found = render_particles(config, 0)
    film = erosion(found.instances == 0, disk(4))
    film[:4] = film[-4:] = film[:, :4] = film[:, -4:] = False  # particles may lie just beyond
    grey, spread = np.median(found.image[film]), found.image[film].std()
    sign = -1 if look == "tem" else 1
    for number in within(found.instances):
        inside = found.image[erosion(found.instances == number, disk(1))]
        assert sign * (inside.mean() - grey) > max(0.04, 3 * spread), number
    assert abs(found.image[film] - grey).max() < 6 * max(spread, 0.01)


@pytest.mark.parametrize("look", LOOKS)
def test_grey_beyond_a_threshold_is_what_the_truth_says(look):
    config = replace(SMALL, look=look, holes=0, texture=0.005, uneven=0, coverage=(0.2, 0.2))
    for index in range(3):
        found = render_particles(config, index)
        truth = found.instances > 0
        film, inside = np.median(found.image[~truth]), np.median(found.image[truth])
        seen = (found.image - film) / (inside - film) > 0.35
        assert (seen & truth).sum() / (seen | truth).sum() > 0.88


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_follow_the_diameters_that_were_asked_for(shape):
    config = ParticlesConfig(
        size_px=(600, 600), shape=shape, diameter_nm=(48, 48), pixel_nm=2, spread=0.2, touching=0
    )
    areas = []
    for index in range(3):
        instances = render_particles(config, index).instances
        areas += [(instances == number).sum() for number in within(instances)]
    diameters = np.log(np.sqrt(4 / np.pi * np.array(areas)) * config.pixel_nm)
    assert len(diameters) > 100
    assert np.exp(np.median(diameters)) == pytest.approx(48, rel=0.06)  # 3 standard errors
    assert diameters.std() == pytest.approx(0.2, abs=0.045)


def test_touching_is_the_share_of_those_that_touch():
    apart, all_of_them = (
        touching(render_particles(replace(SMALL, touching=share, coverage=(0.2, 0.2)), 2).instances)
        for share in (0, 1)
    )
    assert apart == 0 and all_of_them > 0.9


def test_coverage_is_the_share_of_the_image():
    for wanted in (0.1, 0.3):
        config = replace(SMALL, coverage=(wanted, wanted), holes=0, diameter_nm=(12, 14))
        covered = (render_particles(config, 0).instances > 0).mean()
        assert wanted <= covered < wanted + 0.02


def test_holes_are_of_other_grey_and_without_particles_in_their_middle():
    config = replace(SMALL, look="haadf", texture=0, uneven=0, coverage=(0, 0))
    whole, holed = (render_particles(replace(config, holes=share), 0).image for share in (0, 1))
    assert whole.std() < 1e-3
    hole = holed < holed.max() - 0.07
    assert 0.02 < hole.mean() < 0.8
    config = replace(config, holes=1, coverage=(0.3, 0.3), diameter_nm=(12, 12), shape="spheres")
    empty = render_particles(replace(config, coverage=(0, 0)), 0).image
    hole = erosion(empty < empty.max() - 0.07, disk(2))
    instances = render_particles(config, 0).instances
    inner = [number for number in within(instances) if (instances == number).sum() > 100]
    middles = [np.argwhere(instances == number).mean(0).astype(int) for number in inner]
    assert len(middles) > 20 and not any(hole[tuple(middle)] for middle in middles)
    assert hole[instances > 0].any()  # their rims may lie over a hole


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size_px": (8, 64)}, "size_px must be two whole numbers"),
        ({"seed": -1}, "seed must be"),
        ({"look": "xray"}, "wanted any, tem, sem, haadf"),
        ({"shape": "stars"}, "wanted any, spheres, facets, rods"),
        ({"coverage": (0.4, 0.1)}, "coverage is"),
        ({"spread": 2}, "spread is 2; wanted 0 to 1"),
        ({"diameter_nm": (2, 40)}, "diameter_nm must lie between 6 pixels"),
        ({"diameter_nm": (20, 400)}, "diameter_nm must lie between 6 pixels"),
        ({"size_px": (8192, 8192), "diameter_nm": (6, 9)}, "16 bits"),
    ],
)
def test_wrong_settings_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ParticlesConfig(**wrong)


def test_a_wrong_index_is_refused():
    with pytest.raises(ValueError, match="count from 0"):
        render_particles(SMALL, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_lies_within_its_box_and_the_margin_of_images(shape):
    for number in range(100):
        depth = draw_outline(shape, 100, 0.15, seed=0, index=number, number=number).depth
        rim = np.concatenate([depth[0], depth[-1], depth[:, 0], depth[:, -1]])
        assert rim.max() < -1
        assert len(depth) <= 2 * reach_px(100, 0.15, shape)

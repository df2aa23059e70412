"""What tests of several recipes learn from: a small collection of images of particles."""

import numpy as np
import pytest
from em_train.engine.config import Layer, resolve
from em_train.engine.run_folder import new_run
from em_train.recipes import segment as recipe
from PIL import Image

SIZES = ((60, 80), (96, 64), (64, 64), (70, 70), (80, 60), (24, 30))  # the last is small
FIRST = 301  # number of a particle, more than a byte holds


def draw(path, sizes=SIZES):
    """Images of bright particles on noise in `images`, their numbers in `masks`, NAME_mask.png."""
    rng = np.random.default_rng(3)
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        y, x = np.indices((height, width))
        numbers = np.zeros((height, width), np.uint16)
        for one in range(FIRST, FIRST + 6):
            cy, cx = rng.integers(4, height - 4), rng.integers(4, width - 4)
            numbers[(y - cy) ** 2 + (x - cx) ** 2 < 30] = one
        grey = 90 + 5 * number + 60 * (numbers > 0) + rng.normal(0, 8, numbers.shape)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path / f"images/{number}.png")
        Image.fromarray(numbers).save(path / f"masks/{number}_mask.png")
    return path


@pytest.fixture(scope="session")
def draw_particles():
    """Draws a collection into a folder."""
    return draw


@pytest.fixture(scope="session")
def particles(tmp_path_factory):
    """A collection of six images of particles."""
    return draw(tmp_path_factory.mktemp("particles") / "drawn")


@pytest.fixture(scope="session")
def of_images(tmp_path_factory, particles):
    """A run that has learned to find particles in images."""
    path = tmp_path_factory.mktemp("of-images") / "run"
    settings = {
        "data": {
            "volumes": [f"images:{particles / 'images'}"],
            "labels": [f"particles=images:{particles / 'masks'}?match={{name}}_mask.png"],
            "held_images": [4, 6],
            "patch_vx": 32,
            "batch_size": 4,
            "samples_per_epoch": 120,
        },
        "model": {"unet": {"channels": [8, 12, 16]}},
        "optim": {"lr": 1e-2},
        "run": {"steps": 60, "device": "cpu"},
    }
    config = resolve(recipe.Config, [Layer("test", settings)])
    assert recipe.run(config, new_run(path, config, "segment"))
    return path

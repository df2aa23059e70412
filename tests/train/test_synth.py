"""`emtrain synth` of materials: folders of pictures that the other commands read."""

import csv
import json

import numpy as np
import pytest
from em_data import StoreExistsError, open_images
from em_data.synthetic import LatticeConfig, ParticlesConfig, render_lattice, render_particles
from em_train.cli import app
from em_train.engine import config as configuration
from em_train.recipes import restore, segment
from em_train.synth import write_images
from PIL import Image
from typer.testing import CliRunner

PARTICLES = ParticlesConfig(size_px=(96, 96), seed=2)
LATTICE = LatticeConfig(size_px=(96, 96), seed=2)


def synth(*words):
    done = CliRunner().invoke(app, ["synth", *map(str, words)])
    return done.exit_code, done.output + str(done.exception or "")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_particles_are_written_as_pictures_and_numbers(tmp_path, capsys):
    out = tmp_path / "p"
    code, said = synth(
        out, "--kind", "particles", "--count", 3, "--size", 96, "--nm", 0.5, "--seed", 2
    )
    assert code == 0, said
    assert f"images:{out}/images?voxel_nm=0.5,0.5,0.5" in said.replace("\n", "")
    assert sorted(p.name for p in out.iterdir()) == ["images", "instances", "synth.json"]
    config = ParticlesConfig(size_px=(96, 96), pixel_nm=0.5, seed=2)
    for index in range(3):
        found = render_particles(config, index)
        image, ids = (
            pixels(out / name / f"particles-{index:04d}.png") for name in ("images", "instances")
        )
        assert image.dtype == np.uint8 and ids.dtype == np.uint16
        assert abs(image / 255 - found.image).max() < 0.5001 / 255
        assert (ids == found.instances).all()
    assert json.loads((out / "synth.json").read_text())["config"]["seed"] == 2
    images = open_images(f"images:{out}/images?voxel_nm=0.5,0.5,0.5")
    assert images[0].voxel_size_nm == (0.5, 0.5, 0.5) and len(images) == 3


def test_lattices_have_a_table_of_positions(tmp_path):
    out = tmp_path / "l"
    write_images("lattice", LATTICE, out, count=2)
    with (out / "positions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for index in range(2):
        name, found = f"lattice-{index:04d}", render_lattice(LATTICE, index)
        mine = [row for row in rows if row["image"] == name]
        places = np.array([(row["y_px"], row["x_px"]) for row in mine], float)
        assert abs(places - found.positions_px).max() <= 0.0005001
        assert [int(row["sublattice"]) for row in mine] == found.sublattices.tolist()
        ids = pixels(out / "instances" / f"{name}.png")
        for row, (y, x) in zip(mine, np.rint(places).astype(int), strict=True):
            assert ids[min(y, 95), min(x, 95)] == int(row["id"])


def test_damaged_images_lie_on_clean_ones(tmp_path):
    out = tmp_path / "p"
    write_images("particles", PARTICLES, out, count=2, damage="sem-particles")
    for name in ("particles-0000.png", "particles-0001.png"):
        clean, damaged = (pixels(out / part / name).astype(float) for part in ("images", "damaged"))
        assert 0.005 < abs(clean - damaged).mean() / 255 < 0.2
        assert np.corrcoef(clean.ravel(), damaged.ravel())[0, 1] > 0.5


def test_a_larger_collection_begins_with_a_smaller_one(tmp_path):
    for count in (1, 3):
        write_images("particles", PARTICLES, tmp_path / str(count), count=count, damage="ss-tem")
    for part in ("images", "instances", "damaged"):
        one, three = (tmp_path / n / part / "particles-0000.png" for n in "13")
        assert one.read_bytes() == three.read_bytes()


def test_the_recipes_of_particles_and_restoration_read_them(tmp_path):
    out = tmp_path / "p"
    write_images("particles", PARTICLES, out, count=6, damage="sem-particles")
    shared = ["run.device=cpu", "run.steps=1"]
    for recipe, settings in (
        (
            segment,
            [
                f"data.volumes=['images:{out}/images']",
                f"data.labels=['particles=images:{out}/instances']",
                "data.patch_vx=64",
            ],
        ),
        (
            restore,
            [
                f"data.volumes=['images:{out}/damaged']",
                f"data.target=['images:{out}/images']",
                "data.learn_from=target",
                "data.patch_vx=64",
            ],
        ),
    ):
        config = configuration.resolve(recipe.Config, [configuration.set_layer(settings + shared)])
        recipe.check(config)


def test_nothing_is_replaced_or_left_half_written(tmp_path, monkeypatch):
    out = tmp_path / "p"
    write_images("particles", PARTICLES, out, count=1)
    with pytest.raises(StoreExistsError, match="replace it with --overwrite"):
        write_images("particles", PARTICLES, out, count=1)

    calls = []

    def fail(config, index):
        calls.append(index)
        if index == 1:
            raise KeyboardInterrupt
        return render_particles(config, index)

    with monkeypatch.context() as patch:
        patch.setattr("em_train.synth.render_particles", fail)
        with pytest.raises(KeyboardInterrupt):
            write_images("particles", PARTICLES, out, count=2, overwrite=True)
    assert calls == [0, 1] and [p.name for p in tmp_path.iterdir()] == ["p"]
    assert len(list((out / "images").iterdir())) == 1
    write_images("particles", PARTICLES, out, count=2, overwrite=True)
    assert len(list((out / "images").iterdir())) == 2

    (out / "notes.txt").write_text("mine")
    with pytest.raises(StoreExistsError, match=r"notes\.txt, which is no part of a folder of"):
        write_images("particles", PARTICLES, out, count=1, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(StoreExistsError, match="is no folder of synthetic images"):
        write_images("particles", PARTICLES, other, count=1, overwrite=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "glass"), "no kind 'glass'"),
        (("--count", "3"), "--count would change nothing of tissue"),
        (("--kind", "lattice", "--shape", "1,2,3"), "--shape would change nothing of lattice"),
        (("--kind", "particles", "--damage", "rain"), "no degradation preset 'rain'"),
        (("--kind", "particles", "--set", "shap=rods"), "did you mean shape"),
        (("--kind", "particles", "--size", "8"), "size_px must be"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, words, message):
    code, said = synth(tmp_path / "x", *words)
    assert code != 0 and message in said
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_made_anew(tmp_path):
    out = tmp_path / "p"
    write_images("particles", PARTICLES, tmp_path / ".p.unfinished", count=1)
    write_images("particles", PARTICLES, out, count=2)
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert len(list((out / "images").iterdir())) == 2

"""`emtrain speed`: figures that add up, of volumes held whole and of volumes read in blocks."""

import json
import time

import numpy as np
import pytest
import zarr
from em_data import VolumeFormatError
from em_train.measure.reading import (
    COLLATING,
    CUTTING,
    DECODING,
    READING,
    print_speed,
    reading_speed,
)

pytestmark = pytest.mark.processes

CROPS = {"stack_vx": (3, 32, 32), "cube_vx": (16, 16, 16)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Voxels that are not quickly decoded: noise of half of the values."""
    path = tmp_path_factory.mktemp("speed") / "raw.zarr"
    noise = np.random.default_rng(0).integers(0, 128, (96, 192, 192), np.uint8)
    zarr.create_array(path, data=noise, chunks=(16, 32, 32))
    return path


def check(found):
    json.dumps(found)
    for row, size in zip(found["crops"], (3 * 32 * 32, 16**3), strict=True):
        assert row["crops/s"] > 0
        assert row["MB/s"] == pytest.approx(row["crops/s"] * size / 1e6)
        assert sum(row["where the time goes"].values()) == pytest.approx(1, abs=0.01)


def test_a_volume_read_in_blocks(store, capsys):
    began = time.monotonic()
    found = reading_speed(str(store), seconds=3, budget_bytes=2_500_000, **CROPS)
    assert time.monotonic() - began < 30  # 3.5 s on an idle machine
    check(found)
    for row in found["crops"]:
        assert row["from"].startswith("blocks") and row["decoded MB/s"] > row["MB/s"] / 10
        where = row["where the time goes"]
        assert {READING, DECODING, CUTTING, COLLATING} <= where.keys()
    assert "reading it into memory (s)" not in found
    print_speed(found)
    shown = capsys.readouterr().out
    assert "3 × 32 × 32" in shown and "decoding" in shown and str(store) in shown


def test_a_volume_that_fits_is_held_whole(store):
    found = reading_speed(str(store), seconds=1, **CROPS)
    check(found)
    assert found["reading it into memory (s)"] > 0
    for row in found["crops"]:
        assert (row["from"], row["decoded MB/s"]) == ("memory", 0)
        assert not {READING, DECODING} & row["where the time goes"].keys()


def test_crops_are_no_larger_than_the_volume(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 9, (4, 40, 50), np.uint8))
    found = reading_speed(str(tmp_path / "a.npy"), seconds=0.2)
    assert [row["crop"] for row in found["crops"]] == ["4 × 40 × 40", "4 × 40 × 50"]


def test_what_cannot_be_measured_is_refused(store):
    with pytest.raises(ValueError, match=r"a cube of \(0, 1, 1\) voxels is empty"):
        reading_speed(str(store), cube_vx=(0, 1, 1))
    with pytest.raises(ValueError, match="0 seconds"):
        reading_speed(str(store), seconds=0)
    with pytest.raises(VolumeFormatError, match="channel"):
        reading_speed(str(store), channel=3)

"""That data are the same is seen in their voxels; what no machine holds is refused by its number."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from em_data import (
    BudgetError,
    CubeConfig,
    NotFiniteError,
    VolumeFormatError,
    VolumeReadError,
    open_volume,
    place_labels,
)
from em_train.engine import reading
from em_train.engine.reading import (
    check_batch,
    checksum,
    fingerprint_data,
    gib_bytes,
    load,
    open_collection,
    open_volumes,
)
from em_train.mae.data import DataConfig
from PIL import Image

SHAPE, SIZE = (40, 200, 300), (40.0, 8.0, 8.0)


def volume_of(voxels):
    return open_volume(voxels, voxel_size_nm=SIZE)


def test_other_voxels_and_labels_have_another_checksum():
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 255, SHAPE, np.uint8)
    truth = rng.integers(0, 3, SHAPE, np.uint8)
    raw = volume_of(voxels)
    labels = place_labels(raw, {"mito": volume_of(truth)})
    found = checksum([raw], [labels])
    again = checksum([volume_of(voxels.copy())], [place_labels(raw, {"mito": volume_of(truth)})])
    assert found == again
    big = volume_of(voxels.astype(">u2"))
    assert checksum([big]) == checksum([volume_of(voxels.astype("<u2"))]), "of values, not of bytes"
    others = [checksum([raw]), checksum([volume_of(voxels[::-1])], [labels])]
    others += [checksum([raw], [place_labels(raw, {"mito": volume_of(truth[::-1])})])]
    others += [checksum([raw, raw], [labels, labels])]
    assert len({found, *others}) == 5


def test_labels_of_a_few_slices_are_looked_at_where_they_are():
    raw, plane = volume_of(np.zeros(SHAPE, np.uint8)), np.zeros((1, *SHAPE[1:]), np.uint8)

    def found(values):
        part = replace(volume_of(values), origin_nm=(33 * SIZE[0], 0.0, 0.0))
        return checksum([raw], [place_labels(raw, {"mito": part})])

    assert found(plane) != found(plane + 1)


def test_little_is_read_of_many_and_large_volumes():
    read = []

    class Counted:
        shape, dtype, chunks = (1000, 10**5, 10**5), np.dtype(np.uint8), (32, 128, 128)

        def __getitem__(self, index):
            read.append(index)
            return np.zeros([part.stop - part.start for part in index], np.uint8)

    volume = replace(volume_of(np.zeros((1, 1, 1), np.uint8)), array=Counted())
    checksum([volume] * 1000)
    assert len(read) <= reading.CHECKED * reading.CHECKED_VOLUMES
    assert all(
        part.start % chunk == 0 for i in read for part, chunk in zip(i, (32, 128, 128), strict=True)
    )


@dataclass
class Batches:
    """How samples become batches."""

    batch_size: int
    samples_per_epoch: int = 10
    memory_gib: float = 1.0
    threads: int = 1


def test_numbers_that_no_machine_has_are_refused(monkeypatch):
    for wrong in (1e300, float("inf"), float("nan"), 0.0, -1.0):
        with pytest.raises(ValueError, match="data.memory_gib is .*; wanted GiB"):
            gib_bytes(wrong, "data.memory_gib")
    assert gib_bytes(0.5, "x") == 2**29
    monkeypatch.setattr(reading, "machine_bytes", lambda: 16 * 2**30)
    check_batch(64**3, Batches(8))
    with pytest.raises(MemoryError, match="1000000 crops takes 977 GiB.* lower data.batch_size"):
        check_batch(64**3, Batches(1_000_000))
    monkeypatch.setattr(reading, "machine_bytes", lambda: None)
    check_batch(64**3, Batches(1_000_000))


def test_memory_for_no_blocks_is_refused_by_its_key():
    volume = volume_of(np.zeros(SHAPE, np.uint8))
    with pytest.raises(BudgetError, match=r"^data\.memory_gib is 1e-09: .* give at least"):
        load([volume], CubeConfig(size_vx=(4, 32, 32)), DataConfig(memory_gib=1e-9), seed=0)


def test_gaps_between_slices_are_closed_if_the_run_asks_for_it(tmp_path):
    for number in (0, 1, 5):
        Image.new("L", (5, 4), number).save(tmp_path / f"s{number}.png")
    data = {"volumes": (str(tmp_path),)}
    with pytest.raises(VolumeFormatError, match=r"--set data\.gaps=close"):
        open_volumes(DataConfig(**data))
    (volume,) = open_volumes(DataConfig(**data, gaps="close"))
    assert volume[:, 0:1, 0:1].ravel().tolist() == [0, 1, 5]


@pytest.mark.parametrize("memory_gib", [1, 1e-9])  # held, or read when it is needed
def test_the_share_of_voxels_that_are_no_numbers_is_said(tmp_path, capsys, memory_gib):
    voxels = np.ones((4, 8, 8), np.float32)
    voxels[0] = np.nan
    np.save(tmp_path / "a.npy", voxels)
    data = {"volumes": (str(tmp_path / "a.npy"),), "memory_gib": memory_gib}
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        (volume,) = open_volumes(DataConfig(**data))
        volume[:, :, :]
    open_volumes(DataConfig(**data, nan="mask"))
    assert "a.npy: 25.00% of the voxels are NaN or infinite" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """Three images of different sizes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images"
    path.mkdir()
    for number, size in enumerate(((20, 31), (40, 40), (25, 64))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(path / f"{number}.png")
    return path


def test_a_collection_is_learned_from_alone_and_held_where_it_fits(folder):
    def opened(*volumes, memory_gib=1.0):
        return open_collection(DataConfig(volumes=volumes, memory_gib=memory_gib, nan="mask"))

    assert opened(str(folder)) is None
    images = opened(f"images:{folder}")
    assert len(images) == 3 and isinstance(images[1].array, np.ndarray)
    assert images[1].nan == "mask"
    assert not isinstance(opened(f"images:{folder}", memory_gib=1e-6)[1].array, np.ndarray)
    with pytest.raises(ValueError, match=r"alone; beside it are given raw\.zarr: leave them out"):
        opened(f"images:{folder}", "raw.zarr")
    with pytest.raises(ValueError, match="put all images into one folder"):
        opened(f"images:{folder}", f"images:{folder}")


def test_the_fingerprint_of_a_collection_knows_its_images_wherever_they_lie(folder):
    def found(path):
        images = open_collection(DataConfig(volumes=(f"images:{path}",)))
        loader = load(images, CubeConfig(size_vx=(1, 16, 16)), Batches(2), seed=0)
        return fingerprint_data(loader, "more")

    before = found(folder)
    assert before.text.startswith("3 images uint8, 3820 bytes") and ", more, " in before.text
    assert before.ranges == ()  # each image has its own
    moved = folder.rename(folder.with_name("moved"))
    assert found(moved) == before
    Image.new("L", (64, 25), 9).save(moved / "2.png")
    changed = found(moved)
    (moved / "2.png").rename(moved / "3.png")
    assert len({before.text, changed.text, found(moved).text}) == 3
    (moved / "3.png").write_bytes((moved / "3.png").read_bytes()[:40])  # its header is whole
    with pytest.raises(VolumeReadError):
        found(moved)
    assert found(f"{moved}?unreadable=skip").text.startswith("3 images")

"""Nothing that somebody made is replaced, and nothing is written into a store that is there."""

import os

import numpy as np
import pytest
from em_data import Box, StoreExistsError, begin_blocks, new_store, open_volume
from em_data.writer.place import check_apart, check_free
from em_data.writer.store import ImageConfig

SHAPE = (2, 4, 4)
CONFIG = {"weights": "abc"}


def make_store(path, value=0):
    with new_store(path) as store:
        image = store.add_image(SHAPE, np.uint8, (1, 1, 1))
        image.write(Box((0, 0, 0), SHAPE), np.full(SHAPE, value, np.uint8))
    return path


def by_blocks(path, **options):
    image = ImageConfig(dtype="uint8", shape_vx=SHAPE, voxel_size_nm=None)
    return begin_blocks(path, [image], block_vx=SHAPE, config=CONFIG, **options)


def at_once(path, **options):
    with new_store(path, **options) as store:
        store.add_image(SHAPE, np.uint8, (1, 1, 1))


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("write", [by_blocks, at_once])
def test_what_is_read_is_not_replaced_held_or_entered(tmp_path, write):
    raw = make_store(tmp_path / "raw.zarr", 7)
    labels = make_store(tmp_path / "labels.zarr")
    np.save(tmp_path / "raw.npy", np.zeros(SHAPE))
    (tmp_path / "link").symlink_to(raw)
    (tmp_path / "run").mkdir()
    inputs = [
        str(raw),
        f"mito={labels}@2",
        f"precomputed://{tmp_path / 'raw.npy'}",
        tmp_path / "run",
        "https://example.org/raw.zarr",
    ]
    before = listing(tmp_path)
    for out, message in (
        ("raw.zarr", "is .*raw.zarr, which is read here"),
        ("link", "is .*raw.zarr, which is read here"),
        ("run/../raw.zarr", "is .*raw.zarr"),
        ("labels.zarr", "is mito="),
        ("raw.npy", "is precomputed://"),
        ("run/out.zarr", "lies in .*run, which"),
        ("raw.zarr/labels/new", "lies in .*raw.zarr, which"),
        ("link/new", "lies in .*raw.zarr, which"),
    ):
        with pytest.raises(StoreExistsError, match=message):
            write(tmp_path / out, overwrite=True, inputs=inputs)
    with pytest.raises(StoreExistsError, match="holds .*raw.zarr, which"):
        write(tmp_path, overwrite=True, inputs=inputs)
    assert listing(tmp_path) == before and open_volume(raw)[0:1, 0:1, 0:1] == 7


@pytest.mark.parametrize("write", [by_blocks, at_once])
def test_only_a_zarr_store_is_replaced(tmp_path, write):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "empty").mkdir()
    annotated = make_store(tmp_path / "annotated.zarr")
    (annotated / "remarks.txt").write_text("look at z 7")
    store = make_store(tmp_path / "store.zarr")
    (tmp_path / "link.zarr").symlink_to(store)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = listing(tmp_path)
    for out, message in (
        ("notes", "is no zarr store, and --overwrite replaces nothing else"),
        ("file", "is no zarr store"),
        ("empty", "is no zarr store"),
        ("annotated.zarr", "holds remarks.txt, which is no part"),
        ("link.zarr", "is a link to .*store.zarr; .* its own path"),
        ("dangling", "is a link to .*nowhere, where nothing is"),
        ("store.zarr/inside", "lies in the zarr store .*store.zarr; choose a place outside"),
        ("file/out", "file is a file, not a folder; choose another place"),
        ("", "holds|no zarr store"),
    ):
        with pytest.raises(StoreExistsError, match=message):
            write(tmp_path / out, overwrite=True)
    for out in ("", "."):
        with pytest.raises(StoreExistsError, match="has no name to write under"):
            write(out)
    assert listing(tmp_path) == before


def test_stores_of_other_versions_can_be_replaced(tmp_path):
    zarr = pytest.importorskip("zarr")
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        group = zarr.open_group(path, mode="w", zarr_format=version)
        group.create_array("s0", shape=(4, 4), chunks=(2, 2), dtype="u1")[:] = 1
        check_free(path, overwrite=True)
        check_free(path / "s0", overwrite=True)
        with pytest.raises(StoreExistsError, match="lies in the zarr store"):
            check_apart(path / "s0")


def test_the_old_store_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = make_store(tmp_path / "a.zarr", 7)
    real = os.rename

    def rename(source, target):
        if "building" in str(source):
            raise OSError("no more")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="no more"):
        at_once(path, overwrite=True)
    assert listing(tmp_path)[0] == "a.zarr" and open_volume(path)[0:1, 0:1, 0:1] == 7

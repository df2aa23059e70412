"""Stores that take long: what is finished stays, and nothing half-written looks whole."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorstore
import yaozarrs
import zarr
from em_data import (
    BoxError,
    StoreExistsError,
    VolumeFormatError,
    VolumeNotFoundError,
    new_store,
    open_volume,
)
from em_data.errors import BlockDamagedError, BlockMissingError, DiskFullError
from em_data.writer.blockwise import BlockKey, _flush, attach_blocks, begin_blocks
from em_data.writer.store import ImageConfig

SHAPE = (5, 130, 100)
SIZE, ORIGIN = (40.0, 8.0, 8.0), (80.0, 4.0, 0.0)
CONFIG = {"weights": "abc", "grid": {"tile_vx": [1, 64, 64]}}


def images(**changes):
    frame = {"shape_vx": SHAPE, "voxel_size_nm": SIZE, "origin_nm": ORIGIN, **changes}
    frame = {"chunk_vx": (4, 64, 32), **frame}
    return [
        ImageConfig(
            dtype="uint8",
            channels=("membrane", "mitochondria"),
            colours=((255, 0, 0), (0, 255, 128)),
            **frame,
        ),
        ImageConfig(
            dtype="uint8",
            label="classes",
            classes=("background", "membrane", "mitochondria"),
            colours=((0, 0, 0), (255, 0, 0), (0, 255, 128)),
            pool="mode",
            **frame,
        ),
    ]


def begin(path, **options):
    configs = options.pop("images", None) or images()
    return begin_blocks(path, configs, **{"block_vx": (4, 64, 96), "config": CONFIG, **options})


@pytest.fixture
def arrays():
    draw = np.random.default_rng(0).integers
    return {
        "": draw(0, 255, (2, *SHAPE), np.uint8),
        "labels/classes": draw(0, 3, SHAPE, np.uint8),
    }


def write(store, key, arrays):
    store.write(key, {path: part[(..., *store.box(key).slices)] for path, part in arrays.items()})


def write_all(store, arrays):
    for level in range(store.levels):
        for key in store.pending(level):
            store.coarsen(key) if level else write(store, key, arrays)
    store.finish()


def contents(path):
    """Every file of a store with its bytes."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("shard_vx", [None, (4, 64, 96)])
def test_a_store_reads_back_whole_with_its_units(tmp_path, arrays, shard_vx):
    path = tmp_path / "a.zarr"
    with begin(path, images=images(shard_vx=shard_vx)) as store:
        write_all(store, arrays)
    assert list(tmp_path.iterdir()) == [path]
    for number, name in enumerate(("membrane", "mitochondria")):
        volume = open_volume(path, channel=name)
        assert (volume.voxel_size_nm, volume.origin_nm) == (SIZE, ORIGIN)
        np.testing.assert_array_equal(volume[:, :, :], arrays[""][number])
    np.testing.assert_array_equal(volume.labels("classes")[:, :, :], arrays["labels/classes"])
    assert volume.chunk_vx == (4, 64, 32) and volume.shard_vx == shard_vx
    spec = {"driver": "zarr3", "kvstore": f"file://{path}/s0/"}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), arrays[""])


def test_coarser_levels_are_those_of_a_store_written_in_one_go(tmp_path, arrays):
    with begin(tmp_path / "a.zarr") as store:
        assert store.levels == 3 and len(list(store.keys(1))) == 4
        write_all(store, arrays)
    with new_store(tmp_path / "b.zarr") as whole:
        for config in images():
            image = whole.add_image(
                SHAPE,
                config.dtype,
                SIZE,
                origin_nm=ORIGIN,
                label=config.label,
                channels=config.channels,
                classes=config.classes,
                colours=config.colours,
                pool=config.pool,
                chunk_vx=(4, 64, 32),
            )
            image.arrays[0][...] = arrays[config.path]
    ours, theirs = contents(tmp_path / "a.zarr"), contents(tmp_path / "b.zarr")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"zarr.json"}  # the plan
    half = open_volume(tmp_path / "a.zarr", channel=1, at_nm=(40, 16, 16))
    means = arrays[""][1].reshape(5, 65, 2, 50, 2).mean((2, 4))
    np.testing.assert_allclose(half[:, :, :], means, atol=0.51)
    assert half.origin_nm == (80, 8, 4)


def test_an_independent_validator_accepts_what_is_written(tmp_path, arrays):
    with begin(tmp_path / "a.zarr", images=images(shard_vx=(4, 64, 96))) as store:
        write_all(store, arrays)
    class_map = images(voxel_size_nm=None)[1]
    alone = ImageConfig(**{**vars(class_map), "label": None})
    with begin(tmp_path / "b.zarr", images=[alone]) as store:
        write_all(store, {"": arrays["labels/classes"]})
    with new_store(tmp_path / "c.zarr") as store:
        store.add_image((8, 70, 70), np.float16, (8, 8, 8), channels=["a", "b", "c"])
        store.add_image((8, 70, 70), np.uint64, (8, 8, 8), label="cells")
    for name in "abc":
        yaozarrs.validate_zarr_store(str(tmp_path / f"{name}.zarr"))
    yaozarrs.validate_zarr_store(str(tmp_path / "a.zarr" / "labels" / "classes"))
    described = json.loads((tmp_path / "a.zarr" / "labels" / "classes" / "zarr.json").read_text())
    colours = described["attributes"]["ome"]["image-label"]["colors"]
    assert colours[2] == {"label-value": 2, "rgba": [0, 255, 128, 255]}
    assert open_volume(tmp_path / "b.zarr").voxel_size_nm is None
    broken = tmp_path / "a.zarr" / "zarr.json"  # it does look
    broken.write_text(broken.read_text().replace('"path": "s1"', '"path": "s9"'))
    with pytest.raises(ValueError, match="s9"):
        yaozarrs.validate_zarr_store(str(tmp_path / "a.zarr"))


def test_blocks_of_zeros_are_files_like_others(tmp_path, arrays):
    """One that is not there is one that nobody wrote."""
    blank = {name: np.zeros_like(values) for name, values in arrays.items()}
    with begin(tmp_path / "a.zarr"):
        pass
    with begin(tmp_path / "a.zarr", resume=True) as store:
        write_all(store, blank)
    files = {f.relative_to(tmp_path / "a.zarr") for f in (tmp_path / "a.zarr").rglob("c/*/*/*")}
    with begin(tmp_path / "b.zarr") as store:
        write_all(store, arrays)
    assert files == {
        f.relative_to(tmp_path / "b.zarr") for f in (tmp_path / "b.zarr").rglob("c/*/*/*")
    }


def test_resuming_writes_what_is_missing_and_nothing_else(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        for key in store.pending(0)[::2]:
            write(store, key, arrays)
    assert not path.exists()
    written = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("s0/c/*/*/*/*")}
    with begin(path, resume=True) as store:
        kept, pending = store.done(0), store.pending(0)
        assert len(kept) == 6 and not kept & set(pending)
        assert store.pending(0) == list(store.keys(0))[1::2]
        wrote = []
        plain = store.write
        store.write = lambda key, blocks: (wrote.append(key), plain(key, blocks))
        write_all(store, arrays)
    assert not kept & set(wrote)
    final = {
        tmp_path / ".a.zarr.unfinished" / "store" / f.relative_to(path): f
        for f in path.rglob("s0/c/*/*/*/*")
    }
    assert len(written) > 20
    assert all(final[f].stat().st_mtime_ns == written[f] for f in written)
    np.testing.assert_array_equal(open_volume(path, channel=0)[:, :, :], arrays[""][0])
    assert begin(path, resume=True) is None  # whole already
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_half_written_is_never_taken_for_whole(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        for key in store.pending(0)[1:]:
            write(store, key, arrays)
        with pytest.raises(BlockMissingError, match=r"1 blocks of level 0 are missing, 0/0\.0\.0"):
            store.finish()
        with pytest.raises(BlockMissingError, match=r"block 0/0\.0\.0 .* is missing"):
            store.coarsen(BlockKey(1, 0, 0, 0))
    with pytest.raises(VolumeNotFoundError):
        open_volume(path)
    for inside in (".a.zarr.unfinished", ".a.zarr.unfinished/store"):
        with pytest.raises(VolumeFormatError):
            open_volume(tmp_path / inside)


def test_a_block_that_changed_after_it_was_written_is_found(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        for key in store.pending(0):
            write(store, key, arrays)
        other = arrays[""] + 1
        key = BlockKey(0, 1, 2, 0)
        store.images[""].write(store.box(key), other[(..., *store.box(key).slices)])
        with pytest.raises(BlockDamagedError, match=r"0/1\.2\.0 .* checksum differs.*markers"):
            for coarse in store.pending(1):
                store.coarsen(coarse)
        (store.markers / str(key)).unlink()
        assert store.pending(0) == [key]
        write_all(store, arrays)
    np.testing.assert_array_equal(open_volume(path, channel=1)[:, :, :], arrays[""][1])


def test_narrower_voxels_are_checked_as_they_are_stored(tmp_path):
    path, whole = tmp_path / "a.zarr", np.arange(4 * 64 * 96, dtype=np.uint16) % 251
    frame = {"voxel_size_nm": SIZE, "origin_nm": ORIGIN, "chunk_vx": (4, 64, 32)}
    wide = ImageConfig(dtype="uint16", shape_vx=(4, 64, 96), **frame)
    with begin(path, images=[wide]) as store:
        write_all(store, {"": whole.astype(np.uint8).reshape(4, 64, 96)})
    found = open_volume(path)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[:, :, :].ravel(), whole)


def test_a_place_that_is_taken(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        write(store, store.pending(0)[0], arrays)
        with pytest.raises(StoreExistsError, match="another process is writing"):
            begin(path, resume=True)
    with pytest.raises(StoreExistsError, match="begun already and is not whole"):
        begin(path)
    with begin(path, overwrite=True) as store:
        assert not store.done(0)
        write_all(store, arrays)
    with pytest.raises(StoreExistsError, match="exists already"):
        begin(path)
    with pytest.raises(ValueError, match="give one of them"):
        begin(path, resume=True, overwrite=True)

    # What is overwritten stays until the new one is whole, through an interruption too.
    newer = {name: part // 2 for name, part in arrays.items()}
    with begin(path, overwrite=True) as store:
        write(store, store.pending(0)[0], newer)
    np.testing.assert_array_equal(open_volume(path, channel=0)[:, :, :], arrays[""][0])
    with begin(path, resume=True) as store:
        assert len(store.done(0)) == 1
        write_all(store, newer)
    np.testing.assert_array_equal(open_volume(path, channel=0)[:, :, :], newer[""][0])
    assert list(tmp_path.iterdir()) == [path]

    other = tmp_path / "b.zarr"
    with new_store(other) as plain:
        plain.add_image((2, 4, 4), np.uint8, SIZE)
    with pytest.raises(StoreExistsError, match="not written block by block"):
        begin(other, resume=True)
    with begin(tmp_path / "c.zarr") as store:  # taken by somebody else meanwhile
        shutil.copytree(other, tmp_path / "c.zarr")
        with pytest.raises(StoreExistsError, match="exists already"):
            write_all(store, arrays)
    assert open_volume(tmp_path / "c.zarr").shape == (2, 4, 4)


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    other = {"weights": "abd", "grid": {"tile_vx": [1, 64, 64]}}
    begin(path).close()
    with pytest.raises(StoreExistsError, match="config.weights: 'abc' ≠ 'abd'"):
        begin(path, resume=True, config=other)
    with begin(path, resume=True, block_vx=(4, 128, 96)) as store:
        assert store.block_vx == (4, 64, 96)  # it goes on as it was begun: no voxel depends on it
    with pytest.raises(StoreExistsError, match="images.0.dtype: 'uint8' ≠ 'uint16'"):
        begin(path, resume=True, images=[ImageConfig(**{**vars(images()[0]), "dtype": "uint16"})])
    with begin(path, resume=True) as store:
        write_all(store, arrays)
    with pytest.raises(StoreExistsError, match="config.weights"):
        begin(path, resume=True, config=other)


def test_interruptions_of_the_last_step(tmp_path, arrays, monkeypatch):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        monkeypatch.setattr("em_data.writer.blockwise.put_in_place", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_all(store, arrays)
        monkeypatch.undo()
    with begin(path, resume=True) as store:
        assert not any(store.pending(level) for level in range(store.levels))
        leftover = store.folder / "store" / "s0" / "c" / "x.partial"
        leftover.write_text("of a writer that was killed")
        monkeypatch.setattr("em_data.writer.blockwise.shutil.rmtree", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.finish()
        monkeypatch.undo()
    assert begin(path, resume=True) is None
    assert list(tmp_path.iterdir()) == [path] and not list(path.rglob("*.partial"))
    np.testing.assert_array_equal(open_volume(path, channel=0)[:, :, :], arrays[""][0])


def test_processes_write_different_blocks_at_once(tmp_path, arrays):
    path = tmp_path / "a.zarr"
    np.savez(tmp_path / "arrays.npz", image=arrays[""], classes=arrays["labels/classes"])
    text = """
        import sys
        import numpy as np
        from em_data.writer.blockwise import attach_blocks
        store = attach_blocks(sys.argv[1])
        arrays = np.load(sys.argv[2])
        for key in list(store.keys(0))[int(sys.argv[3])::2]:
            part = (..., *store.box(key).slices)
            image, classes = arrays["image"][part], arrays["classes"][part]
            store.write(key, {"": image, "labels/classes": classes})
    """
    with begin(path) as store:
        commands = [
            [sys.executable, "-c", textwrap.dedent(text), path, tmp_path / "arrays.npz", str(n)]
            for n in range(2)
        ]
        for process in [subprocess.Popen(command) for command in commands]:
            assert process.wait(60) == 0
        assert not store.pending(0)
        write_all(store, arrays)
    np.testing.assert_array_equal(open_volume(path, channel=1)[:, :, :], arrays[""][1])
    with pytest.raises(BlockMissingError, match="begin one first"):
        attach_blocks(path)


def test_a_full_disk_keeps_what_is_finished(tmp_path, arrays, monkeypatch):
    path = tmp_path / "a.zarr"
    put = zarr.storage.LocalStore.set
    room = 20

    async def limited(self, key, value, **options):
        nonlocal room
        room -= "/c/" in key
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await put(self, key, value, **options)

    with begin(path) as store:
        monkeypatch.setattr(zarr.storage.LocalStore, "set", limited)
        with pytest.raises(
            DiskFullError, match=r"block 0/.*No space left.*make room and go on.*blocks that"
        ):
            write_all(store, arrays)
        monkeypatch.undo()
    with begin(path, resume=True) as store:
        assert store.done(0)
        write_all(store, arrays)
    np.testing.assert_array_equal(open_volume(path, channel=0)[:, :, :], arrays[""][0])


def test_a_file_that_may_not_grow_further(tmp_path, arrays):
    """The kernel's own refusal, half way through a file."""
    path = tmp_path / "a.zarr"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with begin(path) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(DiskFullError, match="File too large"):
                write_all(store, arrays)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not store.done(0)
        write_all(store, arrays)
    assert not list(path.rglob("*.partial"))


def test_blocks_that_files_cross_are_refused(tmp_path):
    for block_vx, reason in (
        ((4, 48, 96), r"whole files of \(4, 64, 32\) voxels, or is odd, on y"),
        ((4, 64, 0), "on x"),
    ):
        with pytest.raises(BoxError, match=reason):
            begin(tmp_path / "a.zarr", block_vx=block_vx)
    odd = [ImageConfig(**{**vars(image), "chunk_vx": (1, 32, 32)}) for image in images()]
    with pytest.raises(BoxError, match="is odd, on z"):
        begin(tmp_path / "a.zarr", images=odd, block_vx=(1, 64, 64))
    with pytest.raises(BoxError, match="does not hold whole chunks"):
        images(shard_vx=(4, 96, 32))
    with pytest.raises(BoxError, match="one shape"):
        begin(tmp_path / "a.zarr", images=[images()[0], images(shape_vx=(9, 9, 9))[1]])
    assert not list(tmp_path.iterdir())


def test_blocks_must_be_complete_and_of_the_right_type(tmp_path, arrays):
    with begin(tmp_path / "a.zarr") as store:
        key = next(store.keys(0))
        part = {path: array[(..., *store.box(key).slices)] for path, array in arrays.items()}
        with pytest.raises(ValueError, match=r"came with images \[''\]"):
            store.write(key, {"": part[""]})
        with pytest.raises(BoxError, match="does not fill"):
            store.write(key, part | {"": part[""][:1]})
        with pytest.raises(ValueError, match="float32 for an image of uint8"):
            store.write(key, part | {"": part[""].astype(np.float32)})
        assert not store.done(0)


def test_folders_are_left_alone_where_they_cannot_be_opened(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.touch()
    flushed, opened = [], os.open

    def windows_open(path, flags):
        if path.is_dir() or not flags & os.O_RDWR:  # then fsync fails there
            raise PermissionError(path)
        flushed.append(path)
        return opened(path, flags)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", windows_open)
    for path in (tmp_path, file):
        _flush(path)
    assert flushed == [file]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"plan": 1, "replaces": false}',
        '{"plan": {}, "replaces": false}',
        "[" * 10**5,
    ],
)
def test_a_plan_that_is_damaged_is_named(tmp_path, arrays, text):
    path = tmp_path / "a.zarr"
    with begin(path) as store:
        stored = store.folder / "plan.json"
    stored.write_text(text)
    with pytest.raises(StoreExistsError, match="plan.json is damaged .*--overwrite"):
        attach_blocks(path)
    with pytest.raises(StoreExistsError, match=r"plan.json is damaged|another configuration"):
        begin(path, resume=True)
    with begin(path, overwrite=True) as store:
        write_all(store, arrays)


@pytest.mark.parametrize("text", ["null", "[]", "{}", '{"plan": "x"}', '{"crc32": 3}'])
def test_a_marker_that_is_damaged_is_a_damaged_block(tmp_path, arrays, text):
    with begin(tmp_path / "a.zarr") as store:
        key = store.pending(0)[0]
        write(store, key, arrays)
        (store.markers / str(key)).write_text(text)
        with pytest.raises(BlockDamagedError, match="not what was written"):
            store._check(key, "", store.images[""].read(store.box(key)))

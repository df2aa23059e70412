"""Write a store that takes hours: block by block, by many processes, through kills and full disks.

A block is whole files of every image, written by one process at a time; the same block written
twice is the same bytes. First its voxels, flushed, then its marker. So a marker means that the block
is on the disk, and whoever goes on with the store leaves it alone. Coarser levels are blocks too,
each pooled from blocks of the level before, whose checksums are compared on the way.

    .NAME.unfinished/           beside NAME, until it is whole
        lock                    held by the process that deals out the blocks
        plan.json               what is written, and by which configuration
        markers/0/3.1.2         level 0, block (3, 1, 2): its checksums
        store/                  the OME-Zarr, without the metadata that would make it an image

The last step adds the metadata and renames `store` to NAME.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from em_data.errors import (
    BlockDamagedError,
    BlockMissingError,
    BoxError,
    DiskFullError,
    StoreExistsError,
)
from em_data.geometry import Box, Int3, int3
from em_data.writer.resume import ATTRIBUTE, check_same, image_config, plan_of_finished
from em_data.writer.store import Image, ImageConfig, check_free, put_in_place, write_metadata

if sys.platform != "win32":
    import fcntl

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FLUSHES = 32  # at once
NAMED = 5  # missing blocks that a message names


class BlockKey(NamedTuple):
    """A block of one level, counted along (z, y, x).

    >>> str(BlockKey(0, 3, 1, 2)), BlockKey.parse("0/3.1.2")
    ('0/3.1.2', BlockKey(level=0, z=3, y=1, x=2))
    """

    level: int
    z: int
    y: int
    x: int

    def __str__(self) -> str:
        return f"{self.level}/{self.z}.{self.y}.{self.x}"

    @classmethod
    def parse(cls, text: str) -> BlockKey:
        """The key that was written as `text`."""
        level, _, place = text.partition("/")
        z, y, x = map(int, place.split("."))
        return cls(int(level), z, y, x)


class BlockStore:
    """A store that is being written block by block; `begin_blocks` and `attach_blocks` give one."""

    def __init__(self, path: Path, plan: Mapping[str, Any], *, create: bool = False) -> None:
        self.path = path
        self.folder = _unfinished(path)
        self.markers = self.folder / "markers"
        self.plan = plan
        self.hash = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
        self.block_vx = int3(plan["block_vx"])
        self.finished = False
        self._lock: int | None = None
        configs = [image_config(described) for described in plan["images"]]
        store = self.folder / "store"
        if create:
            root = zarr.open_group(store, mode="w", zarr_format=3)
        else:
            root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
        self.root = root
        self.images = {config.path: Image(root, config, create=create) for config in configs}
        self._any = next(iter(self.images.values()))

    @property
    def levels(self) -> int:
        """Number of levels; each can be written when the one before is whole."""
        return len(self._any.levels)

    def shape(self, level: int = 0) -> Int3:
        """Voxels of a level along (z, y, x)."""
        return self._any.levels[level].shape

    def keys(self, level: int) -> Iterator[BlockKey]:
        """All blocks of a level in C order."""
        counts = (range(-(-n // b)) for n, b in zip(self.shape(level), self.block_vx, strict=True))
        return (BlockKey(level, *place) for place in itertools.product(*counts))

    def box(self, key: BlockKey) -> Box:
        """Where a block lies in its level."""
        shape = self.shape(key.level)
        origin = [i * b for i, b in zip(key[1:], self.block_vx, strict=True)]
        size = [min(b, n - o) for b, n, o in zip(self.block_vx, shape, origin, strict=True)]
        return Box(int3(origin), int3(size))

    def done(self, level: int) -> set[BlockKey]:
        """The blocks of a level that are on the disk."""
        names = (marker.name for marker in (self.markers / str(level)).iterdir())
        return {BlockKey.parse(f"{level}/{name}") for name in names if not name.startswith(".")}

    def is_done(self, key: BlockKey) -> bool:
        """Whether a block is on the disk."""
        return self._marker(key).exists()

    def pending(self, level: int) -> list[BlockKey]:
        """The blocks of a level that are still to be written."""
        done = self.done(level)
        return [key for key in self.keys(level) if key not in done]

    def write(self, key: BlockKey, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one block of every image, by its path in the store, and then its marker."""
        if set(arrays) != set(self.images):
            raise ValueError(
                f"block {key} of {self.path} came with images {sorted(arrays)}; "
                f"wanted {sorted(self.images)}"
            )
        box, checksums = self.box(key), {}
        with self._disk_may_be_full(key):
            for path, image in self.images.items():
                given = arrays[path]
                image.write(box, given, key.level)
                voxels = np.ascontiguousarray(given, image.config.dtype)  # as they are read again
                checksums[path] = zlib.crc32(voxels.data)
                files = list(self._files(image, box, key.level))
                # At once: disks answer thirty requests ten times as fast as one after the other.
                with ThreadPoolExecutor(FLUSHES) as pool:
                    list(pool.map(_flush, files + list({file.parent for file in files})))
            marker = self._marker(key)
            temporary = marker.with_name(f".{marker.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"plan": self.hash, "crc32": checksums}))
            _flush(temporary)
            temporary.replace(marker)
            _flush(marker.parent)

    def coarsen(self, key: BlockKey) -> None:
        """Write one block of a level above 0, pooled from the level before."""
        self.write(key, {path: self._pooled(key, path) for path in self.images})

    def finish(self) -> None:
        """Give the store its name; a block that is missing or damaged is an error."""
        for level in range(self.levels):
            missing = self.pending(level)
            if missing:
                raise BlockMissingError(
                    f"{self.path} is not whole: {len(missing)} blocks of level {level} are missing, "
                    f"{', '.join(map(str, missing[:NAMED]))}"
                    f"{' …' if len(missing) > NAMED else ''}; go on with --resume"
                )
        for key in self.keys(self.levels - 1):  # the other levels were compared when pooled from
            for path, image in self.images.items():
                self._check(key, path, image.read(self.box(key), key.level))
        store = self.folder / "store"
        for leftover in store.rglob("*.partial"):  # of writers that were killed
            leftover.unlink(missing_ok=True)
        with self._disk_may_be_full(None):
            self.root.attrs[ATTRIBUTE] = dict(self.plan)
            write_metadata(self.root, list(self.images.values()))
            for path in self.images:
                _flush(store / path / "zarr.json")
        replaces = json.loads((self.folder / "plan.json").read_text())["replaces"]
        put_in_place(store, self.path, overwrite=replaces)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.finished = True
        self.close()

    def close(self) -> None:
        """Let another process deal out the blocks."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pooled(self, key: BlockKey, path: str) -> np.ndarray:
        image, box = self.images[path], self.box(key)
        source = image.source(box, key.level)
        count = (len(image.config.channels),) * bool(image.config.channels)
        pooled = np.empty(count + box.size_vx, image.config.dtype)
        # Source by source, so that each is compared with its checksum and memory stays small.
        ranges = (
            range(o // b, -(-(o + s) // b))
            for o, s, b in zip(source.origin_vx, source.size_vx, self.block_vx, strict=True)
        )
        for place in itertools.product(*ranges):
            part = BlockKey(key.level - 1, *place)
            fine = image.read(self.box(part), part.level)
            self._check(part, path, fine)
            coarse = image.coarsen(fine, key.level)
            step = image.levels[key.level].step
            starts = [
                i * b // k - o
                for i, b, k, o in zip(place, self.block_vx, step, box.origin_vx, strict=True)
            ]
            pooled[(..., *Box(int3(starts), int3(coarse.shape[-3:])).slices)] = coarse
        return pooled

    def _check(self, key: BlockKey, path: str, voxels: np.ndarray) -> None:
        marker = self._marker(key)
        try:
            stored = json.loads(marker.read_text())
        except FileNotFoundError:
            raise BlockMissingError(
                f"block {key} of {self.path} is missing; go on with --resume"
            ) from None
        except ValueError:
            stored = {}
        if stored.get("plan") != self.hash or stored["crc32"].get(path) != zlib.crc32(voxels.data):
            raise BlockDamagedError(
                f"block {key} of {self.path} is not what was written (its checksum differs); delete "
                f"{marker} and go on with --resume to write it again"
            )

    def _marker(self, key: BlockKey) -> Path:
        return self.markers / str(key)

    def _files(self, image: Image, box: Box, level: int) -> Iterator[Path]:
        """The files that hold a block of an image."""
        array = image.arrays[level]
        files = array.shards or array.chunks
        ranges = [
            range(o // f, -(-(o + s) // f))
            for o, s, f in zip(box.origin_vx, box.size_vx, files[-3:], strict=True)
        ]
        if array.ndim == 4:
            ranges.insert(0, range(-(-array.shape[0] // files[0])))
        for place in itertools.product(*ranges):
            yield self.folder / "store" / array.path / array.metadata.encode_chunk_key(place)

    @contextmanager
    def _disk_may_be_full(self, key: BlockKey | None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            what = "the metadata" if key is None else f"block {key}"
            free = shutil.disk_usage(self.folder).free
            raise DiskFullError(
                f"{what} of {self.path} cannot be written ({error.strerror}; {free / 2**20:.0f} MiB "
                "are free there); make room and go on with --resume: the blocks that are finished stay"
            ) from error


def begin_blocks(
    path: str | Path,
    images: Sequence[ImageConfig],
    *,
    block_vx: Int3,
    config: Mapping[str, Any],
    resume: bool = False,
    overwrite: bool = False,
) -> BlockStore | None:
    """Begin a store that is written block by block, or go on with one; None: it is whole already.

    Args:
        path: the name that the store gets when it is whole.
        images: what is written, all of one shape.
        block_vx: what one process writes at once; whole chunks or shards. No voxel depends on it, and
            a store that is gone on with keeps its own.
        config: all that the voxels depend on, as JSON can hold it. Going on with another one is
            refused.
        resume: go on where another process was interrupted; begin where there is nothing yet.
        overwrite: begin anew whatever is there. A finished store stays until the new one is whole.
    """
    path = Path(path)
    if resume and overwrite:
        raise ValueError(
            "--resume goes on with a store, --overwrite begins it anew; give one of them"
        )
    _check_blocks(images, block_vx)
    described = {
        "config": dict(config),
        "block_vx": block_vx,
        "images": [asdict(image) for image in images],
    }
    plan = json.loads(json.dumps(described))  # as it will be read again
    folder = _unfinished(path)
    if path.exists() and not overwrite and not (resume and (folder / "store").exists()):
        if not resume:
            check_free(path)
        check_same(path, plan_of_finished(path), plan)
        shutil.rmtree(folder, ignore_errors=True)  # where the last step was interrupted
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = _hold(folder, path)
    try:
        return _begin(path, plan, lock, resume=resume, overwrite=overwrite)
    except BaseException:
        os.close(lock)
        if not any(inside.name != "lock" for inside in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _begin(
    path: Path, plan: Mapping[str, Any], lock: int, *, resume: bool, overwrite: bool
) -> BlockStore:
    folder = _unfinished(path)
    stored = folder / "plan.json"
    if stored.exists() and (folder / "store").exists() and not overwrite:
        if not resume:
            raise StoreExistsError(
                f"{path} was begun already and is not whole (what there is lies in {folder}); "
                "go on with --resume, or begin anew with --overwrite"
            )
        kept = json.loads(stored.read_text())
        check_free(path, overwrite=kept["replaces"])
        check_same(path, kept["plan"], plan)
        store = BlockStore(path, kept["plan"])
        store._lock = lock
        return store
    check_free(path, overwrite=overwrite)
    stored.unlink(missing_ok=True)  # first: what follows is nothing to go on with
    for inside in ("store", "markers"):
        shutil.rmtree(folder / inside, ignore_errors=True)
    store = BlockStore(path, plan, create=True)
    for level in range(store.levels):
        (store.markers / str(level)).mkdir(parents=True)
    temporary = folder / ".plan.json"
    temporary.write_text(json.dumps({"plan": plan, "replaces": overwrite}, indent=1))
    _flush(temporary)
    temporary.replace(stored)
    _flush(folder)
    store._lock = lock
    return store


def attach_blocks(path: str | Path) -> BlockStore:
    """The store that another process has begun at `path`, to write blocks of it."""
    path = Path(path)
    stored = _unfinished(path) / "plan.json"
    if not stored.exists():
        raise BlockMissingError(f"no store is being written at {path}; begin one first")
    return BlockStore(path, json.loads(stored.read_text())["plan"])


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def _check_blocks(images: Sequence[ImageConfig], block_vx: Int3) -> None:
    if not images or len({image.shape_vx for image in images}) != 1:
        raise BoxError(
            f"images of shapes {[image.shape_vx for image in images]}; wanted one or more of one shape"
        )
    if len({image.path for image in images}) != len(images):
        raise ValueError(f"images {[image.path for image in images]} have the same name")
    sizes = {(image.voxel_size_nm, image.origin_nm) for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"images have voxel sizes and origins {sorted(sizes, key=str)}; wanted one"
        )
    for image in images:
        for axis, b, f, n in zip("zyx", block_vx, image.file_vx, image.shape_vx, strict=True):
            # Even, because two voxels of a level become one of the next.
            if b < n and (b < 1 or b % f or b % 2):
                raise BoxError(
                    f"block {block_vx} does not hold whole files of {image.file_vx} voxels, or is "
                    f"odd, on {axis}; give an even multiple of the chunk (or shard), or the volume's "
                    f"{n}"
                )


def _hold(folder: Path, path: Path) -> int:
    """Lock the unfinished store until the descriptor is closed or the process ends."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    if sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StoreExistsError(
                f"another process is writing {path}; wait for it, stop it, or choose another name"
            ) from None
    return lock


def _flush(path: Path) -> None:
    """Bring a file or folder to the disk: a power cut takes what only lies in memory."""
    folder = path.is_dir()
    if folder and sys.platform == "win32":
        return  # Windows opens no folders
    # Windows flushes only what is open for writing, and folders never are.
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

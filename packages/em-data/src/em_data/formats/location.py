"""Places that hold files, local or remote, and the zarr store that reads them without lying.

zarr-python takes two kinds of damage for data: a blosc chunk that was cut is decoded from the
memory behind it, and an empty shard counts as one that was never written. `CheckedStore` knows how
long each answer must be and refuses what is shorter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.storage import LocalStore, WrapperStore

from em_data.errors import VolumeReadError
from em_data.formats import remote

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
BLOSC_LENGTH = slice(12, 16)  # of a chunk's header: its own length, little-endian


@dataclass(frozen=True)
class Place:
    """A folder on this machine or a prefix on a server."""

    address: str

    @property
    def is_remote(self) -> bool:
        """Whether a server holds it."""
        return remote.is_remote(self.address)

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.address.rstrip('/')}/{name}")

    def found(self, names: Iterable[str]) -> set[str]:
        """Which of the files `names` are there."""
        if self.is_remote:
            return remote.found_at(self.address, names)
        return {name for name in names if (Path(self.address) / name).exists()}

    def store(self) -> CheckedStore:
        """A zarr store to read from."""
        if not self.is_remote:
            return CheckedStore(LocalStore(self.address, read_only=True), self.address)
        from zarr.storage import ObjectStore

        # Six retries, each after twice the pause of the one before, wait for about six seconds.
        store = remote.remote_store(self.address, retries=6)
        return CheckedStore(ObjectStore(store, read_only=True), self.address)


class CheckedStore(WrapperStore[Store]):
    """A store for reading that refuses what is shorter than it must be, naming the file."""

    def __init__(self, store: Store, address: str) -> None:
        super().__init__(store)
        self.address = address
        self.blosc = False  # the chunks of the array that is read here are blosc frames

    def _with_store(self, store: Store) -> CheckedStore:
        return type(self)(store, self.address)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """What the file `key` holds, None where there is none: the voxels are the fill value."""
        is_metadata = key.endswith(METADATA)
        try:
            value = await self._store.get(key, prototype, byte_range)
        except Exception as error:
            if not remote.is_remote(self.address):
                raise
            if is_metadata and remote.is_refusal(error):
                return None  # what public buckets that may not be listed answer for what is absent
            raise remote.explained(error, f"{self.address}/{key}") from error
        if value is None or is_metadata:
            return value
        wanted = 1
        if isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            wanted = byte_range.suffix
        elif self.blosc and len(value) > BLOSC_LENGTH.stop:
            wanted = int.from_bytes(value[BLOSC_LENGTH].to_bytes(), "little")
        if len(value) < wanted:
            raise VolumeReadError(
                f"{self.address}/{key} is truncated: wanted at least {wanted} bytes, got "
                f"{len(value)}; restore this file, or delete it to read the fill value there"
            )
        return value

"""Blobs by key in an object store; a local folder by default. Knows nothing of jobs or tenants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.store import LocalStore

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PROBE: Final = ".writable"


class BlobMissingError(LookupError):
    """No blob has this key: it was removed, or never written."""


class BlobStore:
    """Immutable bytes by key."""

    def __init__(self, store: ObjectStore) -> None:
        """Wrap any obstore store."""
        self._store = store

    @classmethod
    def in_folder(cls, folder: Path) -> BlobStore:
        """Keep blobs as files under `folder`, which is made if need be."""
        return cls(LocalStore(folder, mkdir=True))

    async def put(self, key: str, content: bytes) -> None:
        """Store bytes under a key; a reader sees all of them or none."""
        await obstore.put_async(self._store, key, content)

    async def get(self, key: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            BlobMissingError: there is no such blob.
        """
        try:
            result = await obstore.get_async(self._store, key)
        except FileNotFoundError as error:
            message = f"Blob {key} is not in the artifact store; it may have been removed."
            raise BlobMissingError(message) from error
        return bytes(await result.bytes_async())

    async def check_writable(self) -> None:
        """Write and remove a probe; raises if the store cannot be written."""
        await obstore.put_async(self._store, _PROBE, b"")
        await obstore.delete_async(self._store, _PROBE)

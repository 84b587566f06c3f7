"""Blobs by key in an object store; a local folder by default. Knows nothing of jobs or tenants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store, from_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PROBE: Final = ".writable"


class BlobMissingError(LookupError):
    """No blob has this key: it was removed, or never written."""


class StoreAwayError(Exception):
    """The object store did not do what it was asked: out of reach, out of space, not allowed."""


class BlobStore:
    """Immutable bytes by key. Every method that waits raises `StoreAwayError` if the store fails."""

    def __init__(self, store: ObjectStore) -> None:
        """Wrap any obstore store."""
        self._store = store

    @classmethod
    def at(cls, place: str) -> BlobStore:
        """Keep blobs where a path or a URL such as `s3://bucket/prefix` says.

        Keys, region and endpoint of an S3-compatible store come from the usual `AWS_` variables.

        Raises:
            ValueError: there can be no store at this place.
        """
        if "://" not in place:
            return cls.in_folder(Path(place).expanduser())
        try:
            return cls(from_url(place))
        except BaseError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def in_folder(cls, folder: Path) -> BlobStore:
        """Keep blobs as files under `folder`, which is made if need be."""
        return cls(LocalStore(folder, mkdir=True, automatic_cleanup=True))

    async def put(self, key: str, content: bytes) -> None:
        """Store bytes under a key; a reader sees all of them or none."""
        with _failures(key):
            if isinstance(self._store, LocalStore):  # in our thread: half of what `async` costs
                await asyncio.to_thread(obstore.put, self._store, key, content)
            else:
                await obstore.put_async(self._store, key, content)

    async def get(self, key: str) -> bytes:
        """Return a blob's bytes.

        Raises:
            BlobMissingError: there is no such blob.
        """
        with _failures(key):
            if isinstance(self._store, LocalStore):
                return await asyncio.to_thread(self._read, key)
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    def _read(self, key: str) -> bytes:
        return bytes(obstore.get(self._store, key).bytes())

    async def get_range(self, key: str, *, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but not including, `end`.

        Raises:
            BlobMissingError: there is no such blob.
        """
        with _failures(key):
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))

    def sign(self, key: str, *, ttl_s: float) -> str | None:
        """Return a URL that gives a blob to whoever has it; None if the store has no such URLs."""
        if not isinstance(self._store, (S3Store, GCSStore, AzureStore)):
            return None
        return obstore.sign(self._store, "GET", key, timedelta(seconds=ttl_s))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove blobs; what is not there is no error."""
        for key in keys:
            with suppress(BlobMissingError), _failures(key):
                await obstore.delete_async(self._store, key)

    async def keys(self, folder: str) -> list[str]:
        """Return the keys that begin with `folder` and a slash."""
        with _failures(folder):
            found = await obstore.list(self._store, folder).collect_async()
        return [entry["path"] for entry in found]

    async def delete_folder(self, folder: str) -> None:
        """Remove every blob whose key begins with `folder` and a slash."""
        await self.delete(await self.keys(folder))

    async def check_writable(self) -> None:
        """Write and remove a probe; raises if the store cannot be written."""
        with _failures(_PROBE):
            await obstore.put_async(self._store, _PROBE, b"")
        await self.delete([_PROBE])  # which another probe may have done meanwhile


@contextmanager
def _failures(key: str) -> Iterator[None]:
    """Raise what the store raises as what our callers know."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"Blob {key} is not in the artifact store; it may have been removed."
        raise BlobMissingError(message) from error
    except (BaseError, OSError) as error:
        cause = str(error).partition("\n")[0]  # then its own debugging notes follow
        raise StoreAwayError(f"The artifact store failed with blob {key}: {cause}") from error

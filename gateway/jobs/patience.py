"""Waiting for an artifact store that fails, because what a job has made costs more than a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import structlog

from gateway.storage.blobs import StoreAwayError

T = TypeVar("T")

_PAUSES_S: Final = (0.2, 1.0, 5.0, 15.0, 30.0)

_log = structlog.get_logger(__name__)


class StoreFailedError(Exception):
    """The artifact store failed for as long as it was worth waiting."""


class Patience:
    """Tries again what an artifact store failed to do, for most of a minute; `end` ends that."""

    def __init__(self) -> None:
        """Be patient."""
        self._over = asyncio.Event()

    def end(self) -> None:
        """Fail at the first error from now on, because the server stops."""
        self._over.set()

    async def bear(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns, which is done until the store does not fail.

        Raises:
            StoreFailedError: it failed to the end. Whatever else `work` raises passes at once.
        """
        pauses = iter(_PAUSES_S)
        while True:
            try:
                return await work()
            except StoreAwayError as error:
                pause_s = next(pauses, None)
                _log.warning("store_failed", reason=str(error), retry_in_s=pause_s)
                if pause_s is None or await self._is_over_within(pause_s):
                    raise StoreFailedError(str(error)) from error

    async def _is_over_within(self, duration_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(duration_s):
                await self._over.wait()
        return self._over.is_set()

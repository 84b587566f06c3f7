"""Replies that a controller waits for from one worker, by what was asked."""

from __future__ import annotations

import asyncio

from engine.errors import EngineError, WorkerLostError
from engine.messages import FromWorker


class Mailbox:
    """Futures by key; every one of them is resolved by a reply or by the worker's death."""

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: dict[str, asyncio.Future[FromWorker]] = {}
        self._queued: set[str] = set()
        self._sockets: dict[str, str] = {}

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for a reply."""
        return bool(self._waiting)

    def is_waited_for_on(self, socket: str) -> bool:
        """Whether somebody waits for a reply to what was sent to one of the worker's sockets."""
        return socket in self._sockets.values()

    def expect(
        self, key: str, *, queued: bool = False, socket: str = ""
    ) -> asyncio.Future[FromWorker]:
        """Return a future for the reply to `key`; asking twice at once is a bug.

        What is `queued` at the worker has not begun until it says so.
        """
        assert key not in self._waiting, key
        future: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        self._waiting[key], self._sockets[key] = future, socket
        if queued:
            self._queued.add(key)
        future.add_done_callback(lambda _done: self._forget(key))
        return future

    def _forget(self, key: str) -> None:
        self._waiting.pop(key, None)
        self._queued.discard(key)
        self._sockets.pop(key, None)

    def began(self, key: str) -> None:
        """Note that the worker has taken up what was queued."""
        self._queued.discard(key)

    def deliver(self, key: str, message: FromWorker) -> None:
        """Resolve the future of `key`; a reply that nobody waits for any more is dropped."""
        if (future := self._waiting.get(key)) is not None and not future.done():
            future.set_result(message)

    def refuse(self, key: str, error: EngineError) -> None:
        """Fail the future of `key`."""
        if (future := self._waiting.get(key)) is not None and not future.done():
            future.set_exception(error)

    def lose_all(self, reason: str) -> None:
        """Fail everything that waits, because the worker is no more."""
        for key, future in list(self._waiting.items()):
            if not future.done():
                future.set_exception(WorkerLostError(reason, began=key not in self._queued))

"""Replies that a controller waits for from one worker, by what was asked."""

from __future__ import annotations

import asyncio

from engine.errors import EngineError
from engine.messages import FromWorker


class Mailbox:
    """Futures by key; every one of them is resolved by a reply or by the worker's death."""

    def __init__(self) -> None:
        """Begin empty."""
        self._waiting: dict[str, asyncio.Future[FromWorker]] = {}

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits for a reply."""
        return bool(self._waiting)

    def expect(self, key: str) -> asyncio.Future[FromWorker]:
        """Return a future for the reply to `key`; asking twice at once is a bug."""
        assert key not in self._waiting, key
        future: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        future.add_done_callback(lambda _done: self._waiting.pop(key, None))
        return future

    def deliver(self, key: str, message: FromWorker) -> None:
        """Resolve the future of `key`; a reply that nobody waits for any more is dropped."""
        if (future := self._waiting.get(key)) is not None and not future.done():
            future.set_result(message)

    def refuse(self, key: str, error: EngineError) -> None:
        """Fail the future of `key`."""
        if (future := self._waiting.get(key)) is not None and not future.done():
            future.set_exception(error)

    def fail_all(self, error: EngineError) -> None:
        """Fail everything that waits."""
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)

"""A client that costs little: one prepared HTTP/1.1 request, sent again and again per connection.

What it does per call is a write, a search for the end of the head and a clock reading, so that the
server is what a measurement is limited by.
"""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import Final

import msgspec

_END: Final = b"\r\n\r\n"
_OK: Final = b"http/1.1 200"
_READ_BYTES: Final = 1 << 20


class BadAnswerError(Exception):
    """The server answered with something else than 200 and a length."""


class Load(msgspec.Struct, frozen=True):
    """What calls took, sorted, and all of them together; in seconds."""

    latencies_s: tuple[float, ...]
    took_s: float

    @property
    def per_s(self) -> float:
        """Calls per second."""
        return len(self.latencies_s) / self.took_s

    def percentile_s(self, percent: int) -> float:
        """Return what `percent` of the calls did not exceed."""
        return self.latencies_s[
            min(len(self.latencies_s) - 1, len(self.latencies_s) * percent // 100)
        ]


def request_of(path: str, body: bytes, port: int) -> bytes:
    """Return a POST of JSON as bytes on the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection:
    """One connection to the server, kept open between calls."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, port: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=_READ_BYTES))

    async def call(self, request: bytes) -> None:
        """Send a request and read its answer; raises unless it is 200."""
        self._writer.write(request)
        head = (await self._reader.readuntil(_END)).lower()
        _, found, rest = head.partition(b"\r\ncontent-length: ")
        if not head.startswith(_OK) or not found:
            raise BadAnswerError(head.decode(errors="replace"))
        await self._reader.readexactly(int(rest.partition(b"\r\n")[0]))

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed it, as it does after some idle seconds."""
        return self._reader.at_eof()

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def closed_loop(port: int, request: bytes, *, calls: int, concurrency: int) -> Load:
    """Send `calls` requests over `concurrency` connections, each waiting for its answer."""
    latencies: list[float] = []
    numbers = iter(range(calls))

    async def caller() -> None:
        connection = await _Connection.to(port)
        for _ in numbers:
            began = time.perf_counter()
            await connection.call(request)
            latencies.append(time.perf_counter() - began)
        await connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return Load(tuple(sorted(latencies)), time.perf_counter() - began)


async def open_loop(port: int, request: bytes, *, calls: int, per_s: float) -> Load:
    """Send `calls` requests at random moments (Poisson), whether or not earlier ones are answered.

    Independent callers, then: in a closed loop with a fixed engine time they fall into step, and
    each waits for all others.
    """
    latencies: list[float] = []
    idle: list[_Connection] = []
    random = Random(0)  # noqa: S311 - moments, not secrets
    began = due_s = time.perf_counter()

    async def caller(due_s: float) -> None:
        while idle and idle[-1].is_closed:
            idle.pop()
        connection = idle.pop() if idle else await _Connection.to(port)
        await connection.call(request)
        latencies.append(time.perf_counter() - due_s)
        idle.append(connection)

    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            due_s += random.expovariate(per_s)
            await asyncio.sleep(due_s - time.perf_counter())
            group.create_task(caller(time.perf_counter()))
    took_s = time.perf_counter() - began
    for connection in idle:
        await connection.close()
    return Load(tuple(sorted(latencies)), took_s)

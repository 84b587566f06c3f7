"""Server-sent events as OpenAI's clients read them: `event:` and `data:`, and nothing else.

No `id:` or `retry:` lines, which the Python SDK takes for events without data. A comment keeps the
connection alive while nothing happens. Once the stream has begun, a failure is an event, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.response import Stream

from gateway.api.caller import JOB_HEADER
from gateway.api.degraded import degraded_headers
from gateway.errors import error_body
from gateway.jobs.record import Job
from gateway.schemas.images import ImageEvent

HEARTBEAT_S: Final = 10.0
_HEARTBEAT: Final = b": keep-alive\n\n"


def event_stream(
    request: Request[Any, Any, Any], events: AsyncIterator[ImageEvent], job: Job
) -> Stream:
    """Return a response that sends events as they come."""
    return Stream(
        _encoded(request, events),
        media_type="text/event-stream",
        headers={
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            JOB_HEADER: job.id,
            **degraded_headers(job),
        },
    )


async def _encoded(
    request: Request[Any, Any, Any], events: AsyncIterator[ImageEvent]
) -> AsyncGenerator[bytes, None]:
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=HEARTBEAT_S)
            if not done:
                yield _HEARTBEAT
                continue
            event = coming.result()
            if event is None:
                return
            yield _line(event.type, msgspec.json.encode(event))
            coming = asyncio.ensure_future(anext(events, None))
    except Exception as error:  # noqa: BLE001 - the status is sent: what is left is to say it here
        yield _line("error", msgspec.json.encode(error_body(request, error)[0]))
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await coming


def _line(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"

"""Previews on their way to a caller who watches: blobs beside the job's artifacts.

The runner may be another process, so the store is what both have in common. Whoever watches looks
for new ones whenever it is woken; a preview that is never looked at goes with the job.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from gateway.jobs.events import event_of
from gateway.storage.blobs import BlobMissingError

if TYPE_CHECKING:
    from engine import Preview
    from gateway.jobs.events import JobEvents
    from gateway.jobs.record import Job
    from gateway.storage.blobs import BlobStore

_NAME: Final = re.compile(r".*/preview-(\d+)-(\d+)\.\w+")
_log = structlog.get_logger(__name__)


class Shown(NamedTuple):
    """A preview as its caller gets it: of which picture, its number, and the file."""

    image_index: int
    number: int
    content: bytes


class PreviewStore:
    """Previews of jobs that run."""

    def __init__(self, blobs: BlobStore) -> None:
        """Keep them in `blobs`."""
        self._blobs = blobs

    async def put(self, job: Job, preview: Preview) -> None:
        """Store one where whoever watches the job finds it."""
        name = f"preview-{preview.artifact.index}-{preview.index}.{job.request.media.value}"
        await self._blobs.put(f"{job.id}/{name}", preview.artifact.content)

    async def unseen(self, job: Job, seen: Collection[tuple[int, int]]) -> list[Shown]:
        """Return those that are not in `seen`, in the order they were made for each picture."""
        found = {key: blob for key, blob in await self._found(job) if key not in seen}
        shown = []
        for (image_index, index), blob in sorted(found.items(), key=lambda item: item[0][::-1]):
            with suppress(BlobMissingError):  # the job was deleted meanwhile
                shown.append(Shown(image_index, index, await self._blobs.get(blob)))
        return shown

    async def forget(self, job: Job) -> None:
        """Remove all previews of a job."""
        await self._blobs.delete([blob for _, blob in await self._found(job)])

    async def _found(self, job: Job) -> list[tuple[tuple[int, int], str]]:
        matches = [(_NAME.fullmatch(key), key) for key in await self._blobs.keys(job.id)]
        return [((int(m[1]), int(m[2])), key) for m, key in matches if m is not None]


class PreviewRelay:
    """The runner's end: takes previews off the engine's loop into the store."""

    def __init__(self, store: PreviewStore, events: JobEvents) -> None:
        """Wake whoever watches through `events`."""
        self._store, self._events = store, events
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, job: Job) -> Callable[[Preview], None] | None:
        """Return what the engine is to call with a job's previews; None if it wants none."""
        if not job.request.previews:
            return None

        def take(preview: Preview) -> None:
            task = asyncio.create_task(self._relay(job, preview))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return take

    async def _relay(self, job: Job, preview: Preview) -> None:
        try:
            await self._store.put(job, preview)
        except Exception:  # noqa: BLE001 - a preview that is lost harms nobody
            _log.warning("preview_lost", job_id=job.id, exc_info=True)
        else:
            self._events.publish(event_of(job))

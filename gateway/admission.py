"""From a checked wish to a durable job: the one way in, for pictures and videos alike.

An equal request of the same caller finds the job that is there. A new one is refused if the queue
is full, or if it has a hard deadline that it would miss.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from engine import InvalidRequestError, Modality
from gateway.auth.principal import TenantId
from gateway.door import Door, Thrift
from gateway.errors import (
    GatewayError,
    KeyConflictError,
    OverloadedError,
    RequestError,
    translate,
)
from gateway.jobs.entry import Backlog, KeyReusedError
from gateway.jobs.record import Job, NewJob, new_job_id
from gateway.jobs.store import QueueFullError
from gateway.resolve import Origin, Wish, with_schedule
from gateway.storage.blobs import StoreAwayError

if TYPE_CHECKING:
    from engine import GenerationRequest
    from engine.ports import Clock
    from gateway.engine_client import Catalogue
    from gateway.jobs.service import JobService
    from gateway.measured import AdmissionCounts
    from gateway.storage.blobs import BlobStore

_log = structlog.get_logger(__name__)

_RANDOM_SEEDS: Final = 2**32
_KEYED_GRACE_S: Final = 10.0
_SDK_GRACE_S: Final = 2.0  # the SDKs wait half a second, then one
_RETRY_AFTER_S: Final = (1.0, 60.0)  # beyond 120 the SDKs would not retry at all


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a job is made, and the request and trace that asked for it.

    `route` and `idempotency_key` make a key of their own per route. `retry_count` is how often an
    SDK has sent this request before; None if no SDK sent it.
    """

    tenant: TenantId
    request_id: str
    traceparent: str | None
    route: str = ""
    idempotency_key: str | None = None
    retry_count: int | None = None

    @property
    def grace_s(self) -> float:
        """How long this caller, having left, may take to send the same request again."""
        if self.idempotency_key is not None:
            return _KEYED_GRACE_S
        return 0.0 if self.retry_count is None else _SDK_GRACE_S


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Until when a job is worth doing, and whether its caller waits for it.

    Attributes:
        timeout_s: how long it may wait before it is begun.
        deadline_ms: the caller's own hard deadline from now on, if there is one.
    """

    timeout_s: float
    deadline_ms: int | None = None
    waits: bool = False


class Admission:
    """Writes jobs down; work starts when a runner leases them."""

    def __init__(
        self,
        *,
        engine: Catalogue,
        jobs: JobService,
        blobs: BlobStore,
        clock: Clock,
        slo_scale: float,
        queue_limit: int,
        most_pixels: int,
        counts: AdmissionCounts,
    ) -> None:
        """Give each job a deadline of `slo_scale` times what it takes alone.

        All images of a request may have `most_pixels` together.
        """
        self._blobs, self._counts = blobs, counts
        self._most_pixels = most_pixels
        self._engine = engine
        self._jobs = jobs
        self._clock = clock
        self._slo_scale = slo_scale
        self._queue_limit = queue_limit
        self._leaving: set[asyncio.Task[None]] = set()

    async def admit(
        self,
        wish: Callable[[Origin], Wish],
        caller: Caller,
        body: msgspec.Struct,
        terms: Terms,
    ) -> Job:
        """Turn a wish into a job, or find the one that the same wish has become already.

        `body` is what the caller sent, all of it: equal bodies are equal wishes. A runner may begin
        while we still wait for the disk, and the caller hears of the job afterwards.

        Raises:
            RequestError: it asks for more pixels than one request may.
            OverloadedError: the queue is full.
            DeadlineError: it would be finished after its hard deadline.
            KeyConflictError: the idempotency key was used for another body.
        """
        try:
            wished, new = self._checked(wish, caller, body, terms)
            entering = asyncio.create_task(self._enter(wished, new, caller, terms), name=new.id)
            return await asyncio.shield(entering)
        except (GatewayError, InvalidRequestError) as error:
            answer = translate(error)
            self._counts.rejected(answer.code or answer.type)
            raise
        except asyncio.CancelledError:  # whoever asked has left; the job is written all the same
            leaving = asyncio.create_task(self._leave(entering, caller, terms), name="leave")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            await asyncio.wait([leaving])  # or a server that stops now would queue it again
            raise

    async def _leave(self, entering: asyncio.Task[Job], caller: Caller, terms: Terms) -> None:
        """See a job in whose caller has left meanwhile, and leave it in the caller's stead."""
        try:
            job = await entering
            if terms.waits:
                await self._jobs.leave(job, grace_s=caller.grace_s)
        except Exception as error:  # noqa: BLE001 - there is no job, or it runs to its end
            _log.warning("job_not_left", reason=repr(error))

    def _checked(
        self,
        wish: Callable[[Origin], Wish],
        caller: Caller,
        body: msgspec.Struct,
        terms: Terms,
    ) -> tuple[Wish, NewJob]:
        now_s = self._clock.now()
        origin = Origin(
            job=new_job_id(),
            tenant=caller.tenant,
            arrival_s=now_s,
            random_seed=secrets.randbelow(_RANDOM_SEEDS),
        )
        wished = wish(origin)
        self._check_pixels(wished.request)
        return wished, self._new_job(wished, origin, caller, body, terms)

    async def _enter(self, wished: Wish, new: NewJob, caller: Caller, terms: Terms) -> Job:
        """Write a job down with its files; a power cut cannot take it back then."""
        job = await self._submit(wished, new, caller, terms)
        await self._jobs.flush()
        return job

    async def _submit(self, wished: Wish, new: NewJob, caller: Caller, terms: Terms) -> Job:
        door, kept = self._door(new, terms, self._thrift(new, wished.least_steps)), False
        try:
            for name, content in wished.files.items():
                await self._blobs.put(name, content)
            job = await self._jobs.submit(
                new,
                queue_limit=self._queue_limit,
                admit=door,
            )
            kept = job.id == new.id
        except QueueFullError as error:
            raise self._overloaded(error.backlog) from error
        except KeyReusedError as error:
            raise KeyConflictError(caller.idempotency_key or "") from error
        else:
            if kept:
                self._count(job, door)
            return job
        finally:
            if not kept:
                await self._remove(list(wished.files))

    async def _remove(self, files: Sequence[str]) -> None:
        """Remove files that belong to no job; that they are left changes no answer."""
        try:
            await self._blobs.delete(files)
        except StoreAwayError as error:
            _log.warning("files_not_removed", files=len(files), reason=str(error))

    def _count(self, job: Job, door: Door) -> None:
        self._counts.let_in(job.request.model, is_met=door.is_met)
        if job.request.degraded is not None:
            self._counts.degraded(job.request.model)

    def _new_job(
        self,
        wish: Wish,
        origin: Origin,
        caller: Caller,
        body: msgspec.Struct,
        terms: Terms,
    ) -> NewJob:
        request = wish.request
        alone_s = self._engine.latency_s(request)
        deadline_s, expires_at_s = wish.slo_scale * self._slo_scale * alone_s, terms.timeout_s
        if terms.deadline_ms is not None:
            deadline_s = terms.deadline_ms / 1000
            expires_at_s = min(expires_at_s, deadline_s)
        return NewJob(
            id=origin.job,
            tenant=caller.tenant,
            request=msgspec.structs.replace(request, deadline_s=origin.arrival_s + deadline_s),
            request_id=caller.request_id,
            traceparent=caller.traceparent,
            expires_at_s=origin.arrival_s + expires_at_s,
            predicted_s=alone_s,
            work_s=self._engine.work_s(request),
            waiters=int(terms.waits),
            key=_digest(caller.route, caller.idempotency_key) if caller.idempotency_key else None,
            fingerprint=_digest(caller.route, msgspec.json.encode(body, order="deterministic")),
            retry_count=caller.retry_count or 0,
        )

    def _thrift(self, new: NewJob, least: int | None) -> Thrift | None:
        """Return what fewer steps would save, if a job allows them."""
        if least is None:
            return None
        spec = self._engine.specs[new.request.model]
        lean = with_schedule(new.request, spec, least)
        leanest = msgspec.structs.replace(
            new,
            request=lean,
            predicted_s=self._engine.latency_s(lean),
            work_s=self._engine.work_s(lean),
        )
        return Thrift(new, leanest, lambda steps: with_schedule(new.request, spec, steps))

    def _door(self, new: NewJob, terms: Terms, thrift: Thrift | None) -> Door:
        """Ask the engine now: the door itself stands in the thread of the database."""
        return Door(
            new,
            thrift,
            now_s=self._clock.now(),
            devices=self._engine.devices,
            is_hard=terms.deadline_ms is not None,
            is_known=self._engine.knows(new.request),
        )

    def _check_pixels(self, request: GenerationRequest) -> None:
        pixels = request.n * request.shape.pixels
        if request.media.modality is Modality.IMAGE and pixels > self._most_pixels:
            most = self._most_pixels // request.shape.pixels
            message = (
                f"{request.n} images of {request.shape} have {pixels:,} pixels together; one "
                f"request may ask for {self._most_pixels:,}: {most} images of this size."
            )
            raise RequestError(message, code="integer_above_max_value", param="n")

    def _overloaded(self, backlog: Backlog) -> OverloadedError:
        """Tell when a place in the queue should be free, and when the queue should be empty."""
        empty_in_s = backlog.work_s / max(1, self._engine.devices)
        message = (
            f"The server is overloaded: {backlog.waiting} requests are waiting already, about "
            f"{empty_in_s:.0f} seconds of work. Please retry shortly."
        )
        least_s, most_s = _RETRY_AFTER_S
        retry_s = min(most_s, max(least_s, empty_in_s / max(1, backlog.waiting)))
        return OverloadedError(message, retry_after_s=retry_s, finish_in_s=empty_in_s)


def _digest(route: str, what: str | bytes) -> str:
    found = what.encode() if isinstance(what, str) else what
    return hashlib.sha256(route.encode() + b"\0" + found).hexdigest()

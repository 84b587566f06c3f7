"""The other half of the server: leases jobs, has the engine run them, publishes what it made.

Talks to the API through the job table and the events port only, so that it can move to a process
of its own. A job leaves its hands completed, failed, cancelled, or back in the queue; never lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from engine import (
    Along,
    EngineBusyError,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    InvalidRequestError,
    RequestCancelledError,
    RequestImpossibleError,
)
from gateway.jobs.engines import EngineReport
from gateway.jobs.events import JobEnding, JobEvent, Look, event_of
from gateway.jobs.journal import JobJournal
from gateway.jobs.leases import MAX_ATTEMPTS
from gateway.jobs.outputs import publish, source_files, withdraw
from gateway.jobs.patience import Patience, StoreFailedError
from gateway.jobs.previews import PreviewRelay, PreviewStore
from gateway.jobs.progress import ProgressNotes
from gateway.jobs.record import JobError
from gateway.jobs.span import job_span, mark_completed, mark_failed
from gateway.jobs.state import TERMINAL, JobStatus
from observability.tracing import traceparent_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from engine import GenerationResult
    from engine.ports import Clock
    from gateway.engine_client import EngineClient
    from gateway.jobs.engines import EngineRegistry
    from gateway.jobs.events import JobEvents, Watch
    from gateway.jobs.leases import JobLeases
    from gateway.jobs.record import Job, JobId, Lease
    from gateway.storage.blobs import BlobStore

_POLL_S: Final = 1.0
_EXPLAIN_S: Final = 2.0
_RENEWALS_PER_LEASE: Final = 3
_SAVE_WITHIN_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Runner:
    """Runs jobs. `start` returns at once; `close` gives back what is unfinished."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        leases: JobLeases,
        registry: EngineRegistry,
        events: JobEvents,
        blobs: BlobStore,
        clock: Clock,
        tracer: Tracer,
        max_concurrent: int,
        drain_s: float = 0.0,
    ) -> None:
        """Keep at most `max_concurrent` jobs in the engine; let them run `drain_s` at the end."""
        self._engine = engine
        self._leases = leases
        self._registry = registry
        self._events = events
        self._blobs = blobs
        self._clock = clock
        self._tracer = tracer
        self._max_concurrent = max_concurrent
        self._generations: dict[JobId, asyncio.Task[GenerationResult]] = {}
        self._jobs: dict[JobId, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those of jobs, and of their cleaning up
        self._journals: dict[JobId, JobJournal] = {}
        self._to_cancel: set[JobId] = set()
        self._progress = ProgressNotes(engine, leases)
        self._relay = PreviewRelay(PreviewStore(blobs), events)
        self._promised = 0  # places for jobs that are on their way into the table
        self._is_up = False  # whether the engine took jobs when it was last asked
        self._may_wait = True  # whether jobs may be in the queue that were not seen yet
        self._upkeep_due_s = 0.0
        self._glance_due_s = self._explain_due_s = 0.0
        self._announced: tuple[str, ...] = ()
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self._closing = False
        self._patience = Patience()
        self._obstacle: str | None = "The engine is starting."
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background: the engine may take long to load its models."""
        self._loop = asyncio.create_task(self._run(), name="runner")

    def readiness(self) -> tuple[str, ...]:
        """Return why jobs would not be run now; empty means they would."""
        if self._draining is not None:
            return ("The server is shutting down.",)
        return (self._obstacle,) if self._obstacle else self._engine.readiness()

    def drain(self, then: Callable[[], None]) -> None:
        """Lease no more, and call `then` once all jobs have ended or `drain_s` is over."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(then), name="drain")

    async def _drain(self, then: Callable[[], None]) -> None:
        _log.info("draining", jobs=len(self._jobs), at_most_s=self._drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                while self._jobs:
                    await asyncio.wait(self._jobs.values())
        then()

    async def close(self) -> None:
        """Drain, then save what still runs at its next step and queue it again."""
        self.drain(_do_nothing)
        if self._draining is not None:
            await self._draining
        self._closing = True
        self._patience.end()
        self._events.nudge()
        if self._loop is not None:
            if self._obstacle:
                self._loop.cancel()
            with suppress(asyncio.CancelledError):
                await self._loop
        if self._generations:
            await self._engine.suspend(_SAVE_WITHIN_S)
        for generation in self._generations.values():
            generation.cancel()
        await asyncio.gather(*self._tasks)
        for job in await self._leases.give_all_back():
            self._events.publish(JobEvent(job, JobStatus.QUEUED))
        await self._registry.withdraw(self._leases.owner)
        await self._engine.close()

    async def _run(self) -> None:
        try:
            await self._engine.start()
        except Exception as error:  # noqa: BLE001 - the process lives on to say why it is not ready
            self._obstacle = f"The engine could not start: {error}"
            _log.exception("engine_start_failed")
            return
        self._obstacle = None
        with self._events.watch() as watch:
            while not self._closing:
                await self._try_tick()
                await self._something_to_do(watch)

    async def _something_to_do(self, watch: Watch) -> None:
        """Return when a job may wait that was not seen, and once a second; most news need nothing."""
        until_s = self._clock.now() + _POLL_S
        is_quiet = True
        while is_quiet and self._clock.now() < until_s and not self._closing:
            events = await watch.next(timeout_s=_POLL_S)
            self._may_wait |= not events  # a nudge, or time to look
            for event in events:
                self._heed(event)
            is_quiet = not self._may_wait

    async def _try_tick(self) -> None:
        try:
            await self.tick()
        except Exception:  # noqa: BLE001 - a database in trouble must not end the runner
            _log.exception("runner_tick_failed")

    async def tick(self) -> None:
        """Look after leases if it is time, then lease as many jobs as there is room for."""
        now_s = self._clock.now()
        if now_s >= self._upkeep_due_s:
            self._upkeep_due_s = now_s + self._leases.lease_s / _RENEWALS_PER_LEASE
            await self._upkeep(now_s)
        elif self.readiness() != self._announced:
            await self._announce(now_s)
        if self._generations and now_s >= self._glance_due_s:
            self._glance_due_s = now_s + _POLL_S
            for unwanted in await self._leases.to_cancel():  # the event may have been lost
                self._cancel(unwanted)
        await self._progress.write(tuple(self._generations), now_s=now_s)
        if now_s >= self._explain_due_s:
            self._explain_due_s = now_s + _EXPLAIN_S
            await self._explain()
        room = self._room()
        if self._may_wait and room > 0 and self._draining is None and await self._revive():
            models, self._may_wait = tuple(self._engine.specs), False
            jobs = await self._leases.take(room, models=models, now_s=self._clock.now())
            self._may_wait |= len(jobs) == room
            for job in jobs:
                self.begin(job)

    def _room(self) -> int:
        return self._max_concurrent - len(self._jobs) - self._promised

    async def _revive(self) -> bool:
        self._is_up = await self._engine.revive()
        return self._is_up

    @contextmanager
    def offer(self) -> Iterator[Lease | None]:
        """Keep a place for a job that is being added, and yield its lease; None if it must wait.

        If the table takes the lease, `begin` must follow before the context ends.
        """
        if not self._is_up or self._room() <= 0 or self._draining is not None:
            yield None
            return
        self._promised += 1
        try:
            yield self._leases.lease(now_s=self._clock.now())
        finally:
            self._promised -= 1

    async def _upkeep(self, now_s: float) -> None:
        """Say that this engine lives, and renew its leases."""
        await self._announce(now_s)
        await self.renew()

    async def renew(self) -> None:
        """Renew the leases of what runs here, and drop what was lost."""
        running = frozenset(self._jobs)
        renewal = await self._leases.renew(running, now_s=self._clock.now())
        for job in renewal.to_cancel:
            self._cancel(job)
        for job in running - renewal.held:
            self._stop(job)

    async def _explain(self) -> None:
        """Write down what is new in the scheduler's last words on jobs that run."""
        for job in tuple(self._generations):
            if (journal := self._journals.get(job)) is not None and journal.note_decisions():
                await self._leases.note_schedule(job, journal.schedule)

    async def _announce(self, now_s: float) -> None:
        report = EngineReport(
            owner=self._leases.owner,
            seen_s=now_s,
            devices=self._engine.devices,
            models=tuple(self._engine.specs.values()),
            learnt=self._engine.learnt(),
            reasons=self.readiness(),
        )
        await self._registry.announce(report)
        self._announced = report.reasons

    def _heed(self, event: JobEvent) -> None:
        self._may_wait |= event.status is JobStatus.QUEUED
        if event.cancel_requested and event.status is JobStatus.IN_PROGRESS:
            self._cancel(event.job)

    def _cancel(self, job: JobId) -> None:
        if job in self._jobs:
            self._to_cancel.add(job)
            self._stop(job)

    def _stop(self, job: JobId) -> None:
        """Interrupt the engine only, never the writing of a job's end."""
        if job in self._generations:
            self._generations[job].cancel()

    def begin(self, job: Job) -> None:
        """Run a job in the background whose lease is ours."""
        if self._closing:
            return  # it is given back with whatever else is held
        if job.id in self._jobs:
            return  # its lease had run out and is ours again: whoever runs it holds it as before
        self._events.publish(event_of(job))
        if job.cancel_requested:  # its last holder was told, but stopped before it could obey
            self._to_cancel.add(job.id)
        # Its own context: not that of the call which may have added it just now.
        self._jobs[job.id] = task = asyncio.create_task(
            self._carry_out(job), name=job.id, context=Context()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, job: Job) -> None:
        with (
            structlog.contextvars.bound_contextvars(
                job_id=job.id, request_id=job.request_id, tenant=job.tenant
            ),
            job_span(self._tracer, job, now_s=self._clock.now()) as span,
        ):
            journal = self._journals[job.id] = JobJournal(
                job, engine=self._engine, blobs=self._blobs, leases=self._leases
            )
            try:
                event = await self._settle(job, journal, span)
            except Exception as error:  # noqa: BLE001 - the lease runs out and the job is retried
                _log.exception("job_not_settled")
                mark_failed(span, error)
                event = event_of(job)
        # Make room first: the event wakes this runner's own loop, too.
        del self._journals[job.id]
        del self._jobs[job.id]
        self._to_cancel.discard(job.id)
        if event.status in TERMINAL:  # a queued one would wake the loop in a circle
            self._events.publish(event)
            await self._clean_up(job, journal)

    async def _clean_up(self, job: Job, journal: JobJournal) -> None:
        try:
            await journal.remove()
        except Exception as error:  # noqa: BLE001 - the sweep removes it later
            _log.warning("stages_not_removed", job_id=job.id, reason=repr(error))

    async def _settle(self, job: Job, journal: JobJournal, span: Span) -> JobEvent:
        """Run a job to its end, write the end down, and return what to tell of it."""
        now_s = self._clock.now
        try:
            result = await self._generate(job, journal, span)
            artifacts = await publish(self._blobs, job, result, self._patience)
        except (asyncio.CancelledError, RequestCancelledError):
            if job.id in self._to_cancel:
                await self._leases.cancel(job, now_s=now_s())
                return JobEvent(job.id, JobStatus.CANCELLED)
            return await self._give_back(job)
        except (EngineBusyError, EngineClosedError, StoreFailedError) as error:
            self._is_up = False
            return await self._queue_again(job, journal, error)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller must hear of it
            mark_failed(span, error)
            _log.warning("job_failed", error_type=type(error).__name__, reason=str(error))
            return await self._fail(job, error)
        done = await self._leases.complete(job, artifacts, result.timeline, now_s=now_s())
        if done is not None:
            mark_completed(span, job, now_s=now_s())
            return JobEnding(done.id, done.status, look=Look(done, _contents(result)))
        await withdraw(self._blobs, artifacts)
        is_deleted = await self._leases.cancel(job, now_s=now_s())
        # Or it is another's, and so are its end and what was kept of it.
        return JobEvent(job.id, JobStatus.CANCELLED) if is_deleted else event_of(job)

    async def _queue_again(
        self,
        job: Job,
        journal: JobJournal,
        error: EngineBusyError | EngineClosedError | StoreFailedError,
    ) -> JobEvent:
        """Queue a job again; the try counts only if the next one may well end like it."""
        store_failed = isinstance(error, StoreFailedError) and not self._closing
        counted = store_failed or isinstance(error, EngineCrashedError)
        if counted and journal.fruitless >= MAX_ATTEMPTS:
            return await self._fail(job, error)
        return await self._give_back(job, counted=counted)

    async def _fail(self, job: Job, error: Exception) -> JobEvent:
        is_ours = await self._leases.fail(job, error_of(error), now_s=self._clock.now())
        return JobEvent(job.id, JobStatus.FAILED) if is_ours else event_of(job)

    async def _give_back(self, job: Job, *, counted: bool = False) -> JobEvent:
        now_s = self._clock.now()
        return JobEvent(job.id, await self._leases.give_back(job, now_s=now_s, counted=counted))

    async def _generate(self, job: Job, journal: JobJournal, span: Span) -> GenerationResult:
        await self._patience.bear(journal.load)
        files = await self._patience.bear(lambda: source_files(self._blobs, job))
        along = Along(files, self._relay.show(job))
        if job.id in self._to_cancel:
            message = f"Job {job.id} was cancelled before the engine got it."
            raise RequestCancelledError(message)
        if self._closing:  # whose end waits for what was begun
            message = f"Job {job.id} was not begun, because the server stops."
            raise EngineClosedError(message)
        request = msgspec.structs.replace(
            job.request, traceparent=traceparent_of(span), http_request=job.request_id
        )
        generation = asyncio.ensure_future(self._engine.generate(request, journal, along))
        self._generations[job.id] = generation
        try:
            return await generation
        finally:
            del self._generations[job.id]
            await journal.close()


def _do_nothing() -> None:
    pass


def error_of(error: Exception) -> JobError:
    """Return what the job's row says of an exception."""
    match error:
        case InvalidRequestError():
            return JobError(error.code, str(error), error.param, caller_can_fix=True)
        case RequestImpossibleError():
            return JobError(error.code, str(error), caller_can_fix=True)
        case EngineError():
            return JobError(error.code, str(error))
        case StoreFailedError():
            return JobError("artifact_store_failed", str(error))
        case _:
            return JobError("internal_error", f"{type(error).__name__}: {error}")


def _contents(result: GenerationResult) -> tuple[bytes, ...]:
    return tuple(artifact.content for artifact in result.artifacts)

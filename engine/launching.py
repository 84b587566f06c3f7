"""Carries out plans: launches, pauses and resizes, from a team's acquisition to its report.

Every launch ends here, whatever comes of it: its memory is settled, its team is freed or handed
on, its requests have their outputs booked or their tasks offered again. Knows no policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars

from engine.errors import EngineError, RequestCancelledError, StageFailedError, WorkerLostError
from engine.execution import Execution
from engine.flights import Flight, Follower, carrying
from engine.previews import Shown
from engine.recovery import Recovery
from engine.types import (
    Assignment,
    DispatchPlan,
    HandoffRef,
    PlanId,
    Purpose,
    RequestId,
    RunningView,
    SavedLatent,
    StageTask,
    TaskId,
)
from observability.logging import ids_of

if TYPE_CHECKING:
    from engine.cluster import Cluster
    from engine.embeddings import EmbeddingCache
    from engine.loading import Loader
    from engine.messages import StageReport
    from engine.ports import Clock, Executor
    from engine.runs import RequestRun
    from observability.tracing import StageSpans

_GLANCE_S = 0.02


class Launcher:
    """Everything that is in the air.

    Args:
        observe: told of every report, for policies that learn.
        give_up: told of requests that failed for good.
        saved: told of every request of which a running diffuse has saved a latent.
        landed: told of every request whose launch has ended.
    """

    def __init__(
        self,
        cluster: Cluster,
        loader: Loader,
        executor: Executor,
        *,
        embeddings: EmbeddingCache,
        clock: Clock,
        spans: StageSpans,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        observe: Callable[[Assignment, StageReport], None],
        give_up: Callable[[RequestRun, EngineError], None],
        saved: Callable[[RequestRun], None],
        landed: Callable[[RequestRun], None],
    ) -> None:
        """Begin with nothing in the air."""
        self._cluster, self._loader, self._executor = cluster, loader, executor
        self._clock, self._spans, self._spawn = clock, spans, spawn
        self._observe, self._saved, self._landed = observe, saved, landed
        self._recovery = Recovery(cluster, clock, embeddings, give_up)
        self._embeddings = embeddings
        self._flights: dict[TaskId, Flight] = {}

    def running(self) -> tuple[RunningView, ...]:
        """Return what policies may see of all launches, in order of launch."""
        return tuple(flight.view() for flight in self._flights.values())

    def note_step(self, task: TaskId, step: int, steps: int) -> None:
        """Note that the launch of `task` finished denoise step `step` of `steps`."""
        if (flight := self._flights.get(task)) is not None:
            flight.note_step(step, steps, self._clock.now())

    def note_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Take the latent that a task has saved, and free the one before it."""
        flight = self._flights.get(launch)
        spent = (saved.ref,) if flight is None else flight.keep(task, saved)
        for ref in spent:
            self._embeddings.release(ref)
        for run in () if flight is None else flight.runs:
            self._saved(run)

    def note_latent(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Take the latent that the launch of `task` shows, or free it if nobody wants it."""
        spent: tuple[HandoffRef, ...] = (latent,)
        if (flight := self._flights.get(task)) is not None:
            shown = Shown(index, latent, self._clock.now())
            spent = flight.runs[0].previews.offer(
                flight.assignment.task, flight.assignment.team, shown
            )
        for ref in spent:
            self._executor.release(ref)

    def cancel_unwanted(self, run: RequestRun) -> None:
        """Stop the launches of a request that is over; if others ride along, only its part."""
        for task, assignment in run.running.items():
            flight = self._flights.get(assignment.task.id)
            if flight is None:  # it broke down on a bug, and nobody books its tasks any more
                continue
            if flight.is_wanted:
                self._executor.drop(assignment, task)
            else:
                self._loader.abandon(assignment)
                self._executor.cancel(assignment)

    def carry_out(self, plan: DispatchPlan, requests: Mapping[RequestId, RequestRun]) -> None:
        """Launch what a plan assigns, then ask for the pauses, resizes and loads that it wants."""
        for assignment in plan.assignments:
            self._launch(assignment, requests, plan.id)
        for pause in plan.pauses:
            self._stop_at_boundary(pause.task)
        for resize in plan.resizes:
            self._stop_at_boundary(resize.task, resize.onward)
        for prefetch in plan.prefetches:
            self._spawn(self._loader.prefetch(prefetch.device, prefetch.stage))

    async def ground(self, timeout_s: float) -> None:
        """Pause every diffuse and return when none is in the air, or after `timeout_s`."""
        until_s = self._clock.now() + timeout_s
        while self._clock.now() < until_s:
            diffusing = [f for f in self._flights.values() if f.assignment.task.steps_left]
            if not diffusing:
                return
            for flight in diffusing:
                self._stop_at_boundary(flight.assignment.task.id)
            await self._clock.sleep(_GLANCE_S)

    def _launch(
        self, assignment: Assignment, requests: Mapping[RequestId, RequestRun], plan: PlanId
    ) -> None:
        """Give a team to those tasks of an assignment that are still wanted."""
        parts = [
            (task, run)
            for task in assignment.tasks
            if (run := requests.get(task.request.id)) is not None and not run.is_over
        ]
        if parts:
            wanted, runs = [task for task, _run in parts], [run for _task, run in parts]
            until_s = self._clock.now() + assignment.until_end_s
            self._cluster.teams.acquire(wanted[0].id, assignment.team, until_s)
            self._take_off(carrying(assignment, wanted), runs, plan)

    def _take_off(self, assignment: Assignment, runs: list[RequestRun], plan: PlanId) -> Flight:
        """Start a launch whose team is acquired."""
        flight = Flight(assignment, runs, plan, self._clock.now())
        self._flights[assignment.task.id] = flight
        self._spawn(self._fly(flight))
        return flight

    def _stop_at_boundary(self, task: TaskId, onward: Assignment | None = None) -> None:
        """Pause a running diffuse at its next step boundary, to go on as `onward` if given."""
        flight = self._flights.get(task)
        if flight is None or flight.is_changing:
            return
        if onward is not None:
            held = set(flight.assignment.team)
            self._cluster.teams.extend(task, [d for d in onward.team if d not in held])
        flight.stop_at_boundary(onward)
        self._executor.pause(flight.assignment)

    async def _fly(self, flight: Flight) -> None:
        """Carry one launch from its team's acquisition to its report, whatever comes of it."""
        assignment = flight.assignment
        bind_contextvars(**ids_of(task.request for task in assignment.tasks))
        executions = self._open_executions(flight)
        try:
            if flight.reports is not None:  # its order was sent with the launch before
                load_s, reports = 0.0, await flight.reports
            else:
                load_s = await self._loader.prepare(assignment)
                flight.expect_wanted()
                flight.ahead = self._send_ahead(flight)
                self._drop_again(flight)
                reports = await self._executor.run(assignment)
        except (WorkerLostError, StageFailedError, RequestCancelledError) as error:
            for execution in executions:
                execution.failed(error)
            await self._loader.relieve(assignment, error)
            self._recover(flight, error)
        else:
            self._recovery.succeeded(assignment.team)
            flight.has_paused = any(report.paused for report in reports)
            for (task, run), execution, report in zip(
                flight.parts, executions, reports, strict=True
            ):
                execution.loaded(load_s)
                self._book(run, task, execution, report)
                if task.purpose is not Purpose.IMAGE_ENCODE and not report.cancelled:
                    self._observe(assignment, report)
        finally:
            self._land(flight)

    def _drop_again(self, flight: Flight) -> None:
        """Have the worker leave out what was given up before it had the order, which goes out now."""
        loop = asyncio.get_running_loop()
        for task, run in flight.parts:
            if run.is_over:
                loop.call_soon(self._executor.drop, flight.assignment, task.id)

    def _recover(self, flight: Flight, error: EngineError) -> None:
        """Decide what follows from a failure; a preview is simply not shown."""
        if flight.assignment.task.purpose is not Purpose.PREVIEW:
            self._recovery.failed(flight.parts, flight.assignment.team, error)
            return
        for task, run in flight.parts:
            for ref in run.drop_preview(task):
                self._executor.release(ref)

    def _send_ahead(self, flight: Flight) -> tuple[Follower, ...]:
        """Order what follows in the same launch; these orders go out after the flight's own."""
        assignment, run = flight.assignment, flight.runs[0]
        before, followers = assignment.task, list[Follower]()
        for index, leg in enumerate(assignment.then, start=1):
            if (node := run.next_node(before.node, leg.stage)) is None:
                break
            order = Assignment(
                task=run.foresee(node),
                team=assignment.team,
                expected_s=leg.expected_s,
                activation_bytes=leg.activation_bytes,
                why=assignment.why,
                then=assignment.then[index:],
                follows=before.id,
            )
            followers.append(Follower(order, asyncio.get_running_loop().create_future()))
            self._spawn(self._hear(followers[-1]))
            before = order.task
        return tuple(followers)

    async def _hear(self, follower: Follower) -> None:
        """Run an order that was sent ahead, and keep what comes of it until its turn."""
        try:
            reports = await self._executor.run(follower.order)
        except (WorkerLostError, StageFailedError, RequestCancelledError) as error:
            follower.reports.set_exception(error)
            follower.reports.exception()  # nobody may ask, if the launch before made no output
        else:
            follower.reports.set_result(reports)

    def _open_executions(self, flight: Flight) -> list[Execution]:
        version = self._cluster.placement.version
        return [
            Execution(
                task,
                flight.assignment,
                ids=(flight.plan, version),
                spans=self._spans,
                clock=self._clock,
            )
            for task in flight.assignment.tasks
        ]

    def _book(
        self, run: RequestRun, task: StageTask, execution: Execution, report: StageReport
    ) -> None:
        """Take a report into the request's graph and free the hand-offs that are spent."""
        if report.cancelled:
            execution.failed(RequestCancelledError(f"Task {task.id} was cancelled."))
            run.retry(task, self._clock.now(), failed_on=(), counted=False)  # its request is over
            return
        timing = execution.finished(report)
        self._embeddings.remember(task, report.output)
        if report.paused:
            spent = run.suspend(task, report, timing, self._clock.now())
        else:
            spent = run.complete(task, report, timing, self._clock.now())
        for ref in spent:
            self._embeddings.release(ref)

    def _land(self, flight: Flight) -> None:
        """Free a launch's team, or hand it to the launch that follows at this boundary."""
        task = flight.assignment.task
        del self._flights[task.id]
        if flight.ahead and flight.runs[0].is_done(task.node):
            self._go_on(flight)
        else:
            self._loader.settle(flight.assignment)
            self._free_or_resize(flight)
        for run in flight.runs:
            self._landed(run)

    def _go_on(self, flight: Flight) -> None:
        """Follow the worker to the next stage of the same launch."""
        run, (order, reports) = flight.runs[0], flight.ahead[0]
        heir = carrying(order, [run.task(order.task.node)])
        self._loader.hand_on(flight.assignment, heir)
        until_s = self._clock.now() + heir.until_end_s
        self._cluster.teams.transfer(flight.assignment.task.id, heir.task.id, heir.team, until_s)
        following = self._take_off(heir, [run], flight.plan)
        following.reports, following.ahead = reports, flight.ahead[1:]
        if run.is_over:
            self._executor.cancel(heir)

    def _free_or_resize(self, flight: Flight) -> None:
        """Free a team, or let a paused diffuse go on where a resize wants it."""
        task, run = flight.assignment.task, flight.runs[0]
        if flight.onward is None or not flight.has_paused or run.is_over:
            self._cluster.teams.release(task.id)
            return
        heir = run.task(task.node)
        onward = carrying(flight.onward, [heir])
        until_s = self._clock.now() + onward.expected_s
        self._cluster.teams.transfer(task.id, heir.id, onward.team, until_s)
        self._take_off(onward, [run], flight.plan)

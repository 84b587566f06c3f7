"""The engine's core loop: ready tasks -> plan -> launch -> complete.

It knows no policy (those are ports), no HTTP, no database and no torch. The same loop runs the
server and, with a virtual clock and the fake executor, the simulator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from engine.background import Background
from engine.cluster import Cluster
from engine.embeddings import EmbeddingCache
from engine.errors import (
    EngineBusyError,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    RequestCancelledError,
    RequestImpossibleError,
    RequestRefusedError,
)
from engine.keeping import Kept, KeptLatents
from engine.launching import Launcher
from engine.listener import Listener
from engine.loading import Loader
from engine.pipelines import PipelineSpec, build, served
from engine.readiness import notices, obstacles
from engine.runs import ALONE, Along, RequestRun
from engine.types import (
    ClusterView,
    Decision,
    DispatchPlan,
    GenerationRequest,
    GenerationResult,
    Placement,
    RequestId,
    StageTask,
)

if TYPE_CHECKING:
    from pathlib import Path

    from engine.journal import Journal
    from engine.ports import Clock, Dispatcher, Executor, Planner
    from observability.monitor import StageMonitor
    from observability.snapshot import MonitorSnapshot
    from observability.tracing import StageSpans

log = structlog.get_logger(__name__)


class EngineCore:
    """Runs requests on an executor's devices as its dispatcher and planner decide.

    Args:
        specs: the models that are served.
        monitor: what the planner learns the workload from; None for planners that need none.
        max_requests: bound on requests in the engine; more raise `EngineBusyError`.
        reserve_bytes: per-device memory that is never promised to weights or activations.
        kept: the folder where what diffuses have saved outlives the engine; None keeps nothing.
        embedding_bytes: host memory for prompt embeddings kept across requests; 0 keeps none.
    """

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        *,
        executor: Executor,
        dispatcher: Dispatcher,
        planner: Planner,
        clock: Clock,
        spans: StageSpans,
        monitor: StageMonitor | None = None,
        max_requests: int = 64,
        reserve_bytes: int = 0,
        embedding_bytes: int = 0,
        kept: Path | None = None,
    ) -> None:
        """Wire the ports; nothing starts before `start`."""
        self.specs = {spec.id: spec for spec in specs}
        self._executor, self._dispatcher, self._planner = executor, dispatcher, planner
        self._clock, self._monitor = clock, monitor
        self._requests: dict[RequestId, RequestRun] = {}
        self._max_requests, self._sequence = max_requests, 0
        weights = {spec.stage(k): size for spec in specs for k, size in spec.weight_bytes.items()}
        self.cluster = Cluster(executor, weights, reserve_bytes)
        self._wake, self._suspended = asyncio.Event(), False
        self._background = Background(self._crash)
        self._kept = KeptLatents(kept, specs, self._background.spawn)
        self.embeddings = EmbeddingCache(embedding_bytes, self._kept.freeing(executor.release))
        self._loader = Loader(
            self.cluster, executor, clock, spawn=self._background.spawn, changed=self._wake.set
        )
        self._launcher = Launcher(
            self.cluster,
            self._loader,
            executor,
            embeddings=self.embeddings,
            clock=clock,
            spans=spans,
            spawn=self._background.spawn,
            observe=dispatcher.observe,
            give_up=self._give_up,
            saved=self._kept.follow,
            landed=self._landed,
        )
        self.listener = Listener(
            self.cluster, self._loader, self._launcher, wake=self._wake.set, broke=self._stop
        )
        self._closed: str | None = "The engine has not been started."

    async def start(self) -> None:
        """Start the workers and the loop; returns before any weights are loaded."""
        self._closed = None
        self._background.spawn(self._loop())
        await self._executor.start(self.listener)

    async def generate(
        self, request: GenerationRequest, journal: Journal | None = None, along: Along = ALONE
    ) -> GenerationResult:
        """Run a request to its artifacts, without the stages that `journal` has kept.

        Cancelling the awaiting task cancels the request at its next step boundary.

        Raises:
            InvalidRequestError, RequestImpossibleError: the request can never run here.
            RequestRefusedError: it could only end after its deadline, and the policy refuses that.
            EngineBusyError, EngineClosedError: full, try later; stopped, run it elsewhere.
            StageFailedError, WorkerLostError: a stage failed on every attempt.
        """
        kept = await self._kept.recall(request)
        run = self._admit(request, journal, along, kept)
        try:
            return await run.outcome
        except asyncio.CancelledError:
            self._give_up(run, RequestCancelledError(f"Request {request.id} was cancelled."))
            raise

    def _admit(
        self, request: GenerationRequest, journal: Journal | None, along: Along, kept: Kept
    ) -> RequestRun:
        if self._closed is not None:
            raise EngineClosedError(self._closed)
        if len(self._requests) >= self._max_requests or request.id in self._requests:
            message = f"The engine holds {len(self._requests)} requests; {request.id} must wait."
            raise EngineBusyError(message)
        graph = build(served(request.model, self.specs), request)
        run = RequestRun(request, graph, self._sequence, self._clock.now(), along)
        run.set_out(journal, self._executor.restore, self._executor.release)
        self._sequence += 1
        self._requests[request.id] = run
        self._note(request)
        self.embeddings.recall(run)
        self._kept.resume(run, kept)
        self._landed(run)
        return run

    async def _loop(self) -> None:
        while not self._suspended:
            self._wake.clear()
            if not self._requests:
                self.check_integrity()  # an idle engine audits its ledgers
            view = self.view()
            if (placement := self._planner.place(view, self._snapshot())) is not None:
                self._adopt(placement)
                view = self.view()
            plan = self._dispatcher.plan(self.ready_tasks(), view)
            self._end_hopeless(plan)
            self._launcher.carry_out(plan, self._requests)
            self._preload_idle()
            await self._sleep_until(plan.next_decision_at_s)

    def _end_hopeless(self, plan: DispatchPlan) -> None:
        for held in plan.held:
            if (run := self._requests.get(held.task.request.id)) is None:
                continue
            run.hold(held)
            if held.impossible:
                self._give_up(run, RequestImpossibleError(held.reason))
            elif held.refused:
                self._give_up(run, RequestRefusedError(held.reason))

    def _note(self, request: GenerationRequest) -> None:
        """Tell the monitor what is asked for."""
        if self._monitor is not None:
            self._monitor.requested(
                request.model,
                str(request.shape),
                outputs=request.n,
                steps=request.steps,
                at_s=self._clock.now(),
            )

    def _snapshot(self) -> MonitorSnapshot | None:
        return None if self._monitor is None else self._monitor.fresh_snapshot(self._clock.now())

    def view(self) -> ClusterView:
        """Return the cluster as policies see it now."""
        return self.cluster.view(self._clock.now(), self._launcher.running())

    def ready_tasks(self) -> list[StageTask]:
        """Return the stages that wait for a team, in total order."""
        tasks = (task for run in self._requests.values() for task in run.ready_tasks())
        return sorted(tasks, key=lambda task: task.order)

    async def _sleep_until(self, at_s: float | None) -> None:
        now_s = self._clock.now()
        at_s = self._loader.shortfall.sooner(self.cluster.sooner(at_s, now_s))
        with suppress(TimeoutError):
            async with asyncio.timeout(None if at_s is None else max(0.0, at_s - now_s)):
                await self._wake.wait()

    def _give_up(self, run: RequestRun, error: EngineError) -> None:
        run.fail(error)
        self._launcher.cancel_unwanted(run)
        self._landed(run)

    def _landed(self, run: RequestRun) -> None:
        if run.drained() and self._requests.pop(run.request.id, None) is not None:
            for ref in run.abandon():
                self.embeddings.release(ref)
        self._kept.follow(run)
        self._wake.set()

    def _adopt(self, placement: Placement) -> None:
        """Take a new placement: metadata only; weights move when devices are idle or need them."""
        self.cluster.adopt(placement)
        self._loader.start_over()
        log.info("placement_adopted", version=placement.version, why=placement.why)

    def _preload_idle(self) -> None:
        """Let every idle device load a stage that it should hold; it may be launched on meanwhile."""
        for device in self._loader.unfilled():
            if device not in self.cluster.teams.busy:
                self._loader.fill(device)

    def progress(self, request: RequestId) -> float:
        """Return the share of its denoise steps that a request has done; 0 if it is not here."""
        return self._requests[request].share_done if request in self._requests else 0.0

    def decisions(self, request: RequestId) -> tuple[Decision, ...]:
        """Return the dispatcher's last word on each stage of a request, if it is here."""
        return tuple(self._requests[request].decided.values()) if request in self._requests else ()

    def readiness(self) -> tuple[str, ...]:
        """Return why a request would not succeed now; empty if it would."""
        if self._closed is not None:
            return (self._closed,)
        found = obstacles(self.specs.values(), self._loader, self._dispatcher, self.view())
        return (*found, *self._executor.notices()) if found else ()

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should look at although requests succeed."""
        return (*self._executor.notices(), *notices(self.cluster.quarantine, self._clock.now()))

    def check_integrity(self) -> None:
        """Raise if any ledger, team or graph contradicts itself."""
        self.cluster.check_integrity()
        self.embeddings.check_integrity()
        self._loader.check_integrity()
        for run in self._requests.values():
            run.check_integrity()

    async def suspend(self, timeout_s: float) -> None:
        """Plan no more, pause all diffuses and keep their latents for the engine that comes next.

        A step that takes longer than `timeout_s` is not waited for.
        """
        self._suspended = True
        await self._launcher.ground(timeout_s)
        await self._kept.settle(tuple(self._requests.values()))

    def _crash(self, error: BaseException) -> None:
        """Stop loudly on a bug: an engine that lost a task of its own must not look healthy."""
        log.critical("engine_crashed", exc_info=error)
        self._stop(f"The engine stopped on an internal error: {error!r}.")

    def _stop(self, reason: str, error: type[EngineError] = EngineCrashedError) -> None:
        self._closed = self._closed or reason
        self._kept.leave()
        for run in list(self._requests.values()):
            self._give_up(run, error(reason))

    @property
    def is_closed(self) -> bool:
        """Whether it runs nothing, because it was closed or had to stop."""
        return self._closed is not None

    async def close(self) -> None:
        """Fail what is unfinished with `EngineClosedError`, stop the workers; idempotent."""
        self._stop("The engine is shutting down.", EngineClosedError)
        await self._executor.close()  # first: what waits for a worker hears that it is gone
        await self._background.close()

"""One launch at a time, straight to the executor: what it took, and the memory that it needed.

No core and no policy, but the worker processes that serve. `Executions` hears the executor's devices
in the core's place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from engine import GenerationRequest, MediaFormat, Modality, RequestId, Shape
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    NodeId,
    SavedLatent,
    StageKind,
    StageTask,
    TaskId,
)
from gateway.high_water import HighWater
from schedulers.profiles.measured import Figure

if TYPE_CHECKING:
    from engine import PipelineSpec
    from engine.executors.local import LocalExecutor
    from engine.messages import StageReport

_PROMPT: Final = "a large red circle on a blue background"
_START_S: Final = 300.0
_FEW_STEPS: Final = 4
_LONG_STEP_S: Final = 1.0  # of longer ones a few are enough


class Taken(msgspec.Struct, frozen=True):
    """One execution: what the worker reported of each task and what it took as seen from here."""

    reports: tuple[StageReport, ...]
    wall_s: float
    peak_bytes: int

    @property
    def report(self) -> StageReport:
        """The first task's; they have all but their outputs in common."""
        return self.reports[0]

    @property
    def refs(self) -> tuple[HandoffRef, ...]:
        """What the tasks hand on."""
        return tuple(r.output for r in self.reports if r.output is not None)

    @property
    def step_s(self) -> float:
        """Seconds of one denoise step."""
        return self.report.run_s / max(1, self.report.steps_done)

    @property
    def arrival_s(self) -> float:
        """What passed beyond running and writing: messages, reading."""
        return max(0.0, self.wall_s - self.report.run_s - self.report.send_s)


class Executions:
    """Runs launches on an executor of its own; `now` is the clock that they are timed by."""

    def __init__(
        self, executor: LocalExecutor, now: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begin with no worker up."""
        self._executor, self._now = executor, now
        self._memory: dict[DeviceId, int] = {}
        self._up, self.stepped = asyncio.Event(), asyncio.Event()
        self._count = 0

    async def start(self) -> None:
        """Return when all devices are up; raises TimeoutError."""
        await self._executor.start(self)
        async with asyncio.timeout(_START_S):
            await self._up.wait()

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """All of the executor."""
        return self._executor.devices

    @property
    def memory_bytes(self) -> int:
        """What the smallest device may hold."""
        return min(self._memory.values())

    async def load(self, device: DeviceId, stage: StageKind, spec: PipelineSpec) -> float:
        """Load a stage; return the seconds that the worker measured."""
        return await self._executor.load(device, spec.stage(stage))

    async def reload(self, device: DeviceId, stage: StageKind, spec: PipelineSpec) -> float:
        """Load a stage again that was loaded before."""
        await self._executor.unload(device, spec.stage(stage))
        return await self._executor.load(device, spec.stage(stage))

    async def chain(
        self, spec: PipelineSpec, shape: Shape, repetitions: int, *, degree: int, batch: int
    ) -> list[Figure]:
        """Run whole requests of one size, `batch` together; the first time warms up.

        The warm-up counts for memory only: later ones reuse what it made the worker keep. A load
        before it makes the worker give back what it kept of other sizes.
        """
        await self.reload(self.devices[0], StageKind.ENCODE, spec)
        steps, taken = spec.default_steps, {kind: list[Taken]() for kind in StageKind}
        width = {kind: degree if kind is StageKind.DIFFUSE else 1 for kind in StageKind}
        for _ in range(1 + repetitions):
            refs: tuple[HandoffRef, ...] = ()
            wishes = [a_wish(spec, shape, steps, seed) for seed in range(batch)]
            for kind in StageKind:
                team = self.devices[: width[kind]]
                launch = self.launch(spec, wishes, kind, team, refs)
                taken[kind].append(await self.run(launch))
                self.release(refs)
                refs = taken[kind][-1].refs
            if taken[StageKind.DIFFUSE][-1].step_s > _LONG_STEP_S:
                steps = min(steps, _FEW_STEPS)
        return [
            _figure(spec, shape, kind, taken[kind], degree=width[kind], batch=batch)
            for kind in StageKind
        ]

    async def decodes(
        self, spec: PipelineSpec, shape: Shape, repetitions: int, *, degree: int
    ) -> Figure:
        """Run the decode of one request on a team, over and over; the first time warms up."""
        refs: tuple[HandoffRef, ...] = ()
        wishes = [a_wish(spec, shape, min(_FEW_STEPS, spec.default_steps))]
        for kind in (StageKind.ENCODE, StageKind.DIFFUSE):
            before, made = (
                refs,
                await self.run(self.launch(spec, wishes, kind, self.devices[:1], refs)),
            )
            refs = made.refs
            self.release(before)
        team = self.devices[:degree]
        taken = [
            await self.run(self.launch(spec, wishes, StageKind.DECODE, team, refs))
            for _ in range(1 + repetitions)
        ]
        self.release(refs)
        return _figure(spec, shape, StageKind.DECODE, taken, degree=degree, batch=1)

    def launch(
        self,
        spec: PipelineSpec,
        wishes: Sequence[GenerationRequest],
        kind: StageKind,
        team: Sequence[DeviceId],
        refs: Sequence[HandoffRef] = (),
        *,
        saved: SavedLatent | None = None,
    ) -> Assignment:
        """Return a launch of one stage of several wishes, each with its input."""
        inputs: list[tuple[HandoffRef, ...]] = [(ref,) for ref in refs]
        tasks = [
            self._task(spec, wish, kind, its, saved)
            for wish, its in zip(wishes, inputs or [()] * len(wishes), strict=True)
        ]
        return Assignment(
            task=tasks[0],
            riders=tuple(tasks[1:]),
            team=tuple(team),
            expected_s=0.0,
            activation_bytes=0,
            why="measured",
        )

    def _task(
        self,
        spec: PipelineSpec,
        wish: GenerationRequest,
        kind: StageKind,
        inputs: tuple[HandoffRef, ...],
        saved: SavedLatent | None,
    ) -> StageTask:
        self._count += 1
        return StageTask(
            id=TaskId(f"profile-{self._count}"),
            request=wish,
            node=NodeId(f"{kind.value}-{self._count}"),
            stage=spec.stage(kind),
            image_index=0,
            inputs=inputs,
            sequence=0,
            attempt=1,
            ready_s=0.0,
            saved=saved,
        )

    async def run(self, launch: Assignment) -> Taken:
        """Run a launch and note what it took."""
        memory = HighWater(self._executor.process_ids().get(launch.team[0]))
        began_s = self._now()
        reports = await self._executor.run(launch)
        wall_s = self._now() - began_s
        return Taken(reports, wall_s, reports[0].peak_memory_bytes or memory.bytes_since())

    def pause(self, launch: Assignment) -> None:
        """Have a diffuse stop at its next step."""
        self._executor.pause(launch)

    def release(self, refs: Sequence[HandoffRef]) -> None:
        """Free hand-offs."""
        for ref in refs:
            self._executor.release(ref)

    def device_ready(self, info: DeviceInfo) -> None:
        """Count the devices that are up."""
        self._memory[info.id] = info.memory_bytes
        if len(self._memory) == len(self._executor.devices):
            self._up.set()

    def device_lost(self, device: DeviceId, reason: str) -> None:
        """Do nothing: the launch that it ran fails, and so does the measurement."""
        del device, reason

    def executor_failed(self, reason: str) -> None:
        """Do nothing: see above."""
        del reason

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Let go of it: nothing is gone on from."""
        del launch, task
        self._executor.release(saved.ref)

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Let go of it: nobody asked."""
        del task, index
        self._executor.release(latent)

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        """Note that a diffuse is under way."""
        del task, step, steps
        self.stepped.set()


def _figure(
    spec: PipelineSpec,
    shape: Shape,
    kind: StageKind,
    taken: Sequence[Taken],
    *,
    degree: int,
    batch: int,
) -> Figure:
    """Return the figure of some executions, of which the first was the warm-up."""
    diffuses, counted = kind is StageKind.DIFFUSE, taken[1:]
    return Figure(
        model=spec.id,
        stage=kind,
        shape=shape,
        degree=degree,
        batch=batch,
        run_s=tuple(one.step_s if diffuses else one.report.run_s for one in counted),
        arrival_s=tuple(one.arrival_s for one in counted),
        send_s=tuple(one.report.send_s for one in counted),
        output_bytes=max((ref.size_bytes for one in counted for ref in one.refs), default=0),
        peak_bytes=max(one.peak_bytes for one in taken),
        exact_peak=any(one.report.peak_memory_bytes for one in taken),
    )


def a_wish(spec: PipelineSpec, shape: Shape, steps: int, seed: int = 0) -> GenerationRequest:
    """Return the request that is measured."""
    return GenerationRequest(
        id=RequestId(f"profile-{seed}"),
        model=spec.id,
        prompt=_PROMPT,
        shape=shape,
        steps=steps,
        guidance_scale=spec.default_guidance,
        seed=seed,
        arrival_s=0.0,
        deadline_s=0.0,
        media=MediaFormat.MP4 if spec.modality is Modality.VIDEO else MediaFormat.PNG,
        fps=spec.default_fps,
    )

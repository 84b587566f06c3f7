"""Measures stages on the devices that are here, through the worker processes that serve.

No core and no policy: one launch at a time, straight to the executor. What was measured is kept in
a file beside the profile, so that an interrupted run goes on where it stopped. Bounded in time:
the default size of every model always, further sizes as far as the minutes reach.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec

from engine import (
    GenerationRequest,
    InvalidRequestError,
    MediaFormat,
    Modality,
    RequestId,
    Shape,
    StageFailedError,
)
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
from schedulers.profiles.measured import Figure, LoadFigure, Measured, NodeFigure

if TYPE_CHECKING:
    from engine import PipelineSpec
    from engine.executors.local import LocalExecutor
    from engine.messages import StageReport

_PROMPT: Final = "a large red circle on a blue background"
_SCALES: Final = (0.5, 0.75, 1.5, 2.0)  # of the default size's sides
_START_S: Final = 300.0
_FEW_STEPS: Final = 4
_LONG_STEP_S: Final = 1.0  # of longer ones a few are enough
_KIB: Final = 1024


class Notebook:
    """Figures by what they are of, kept in a file as soon as they are known.

    A file of other circumstances (machine, versions, models) is begun anew.
    """

    def __init__(self, path: Path, circumstances: Mapping[str, object]) -> None:
        """Read what an interrupted run has left."""
        self._path, self.figures = path, list[Measured]()
        head = msgspec.json.encode(circumstances)
        with suppress(OSError, msgspec.MsgspecError):
            first, *lines = path.read_bytes().splitlines() or [b""]
            if first == head:
                self.figures = [msgspec.json.decode(line, type=Measured) for line in lines]
        if not self.figures:
            path.write_bytes(head + b"\n")

    def add(self, figure: Measured) -> None:
        """Keep a figure."""
        self.figures.append(figure)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(figure) + b"\n")

    def has(self, spec: PipelineSpec, shape: Shape, degree: int) -> bool:
        """Return whether a model was measured at a size and degree."""
        return any(
            isinstance(f, Figure)
            and (f.model, f.shape, f.degree, f.stage) == (spec.id, shape, degree, StageKind.DIFFUSE)
            for f in self.figures
        )

    def has_loads(self, spec: PipelineSpec) -> bool:
        """Return whether the loads of all stages of a model were measured."""
        found = {f.stage for f in self.figures if isinstance(f, LoadFigure) and f.model == spec.id}
        return found == set(StageKind)

    @property
    def has_node(self) -> bool:
        """Return whether the node was measured."""
        return any(isinstance(figure, NodeFigure) for figure in self.figures)

    def forget(self) -> None:
        """Delete the file: the profile is written."""
        self._path.unlink(missing_ok=True)


def sizes_of(spec: PipelineSpec, wanted: Sequence[Shape] = ()) -> tuple[Shape, ...]:
    """Return the default size, then others that the model can draw; or those that are `wanted`."""
    default = spec.default_shape
    frames = default.frames
    scaled = (
        Shape(_multiple(spec, default.width_px * s), _multiple(spec, default.height_px * s), frames)
        for s in _SCALES
    )
    return tuple(dict.fromkeys(s for s in (default, *(wanted or scaled)) if _can_draw(spec, s)))


def _multiple(spec: PipelineSpec, side: float) -> int:
    step = spec.size_multiple_px
    return max(step, round(side / step) * step)


def _can_draw(spec: PipelineSpec, shape: Shape) -> bool:
    try:
        spec.check_shape(shape)
        spec.check_frames(shape.frames)
    except InvalidRequestError:
        return False
    return True


class Profiler:
    """Measures everything that fits into the time.

    Args:
        degrees: those that the executor can run; each model is measured at its own of them.
        say: told what is measured now, and how far it has come (0 to 1).
    """

    def __init__(
        self,
        executor: LocalExecutor,
        notebook: Notebook,
        *,
        degrees: Sequence[int],
        repetitions: int,
        minutes: float,
        say: Callable[[str, float], None],
    ) -> None:
        """Begin with no worker up."""
        self._executor, self._notebook, self._say = executor, notebook, say
        self._degrees, self._repetitions = tuple(degrees), repetitions
        self._limit_s, self._began_s = 60 * minutes, time.monotonic()
        self._memory: dict[DeviceId, int] = {}
        self._up, self._stepped = asyncio.Event(), asyncio.Event()
        self._ids = iter(range(1 << 60))
        self.left_out: list[str] = []

    async def measure(self, specs: Sequence[PipelineSpec], wanted: Sequence[Shape]) -> None:
        """Measure all models; what is left out for want of time is in `left_out`."""
        await self._executor.start(self)
        async with asyncio.timeout(_START_S):
            await self._up.wait()
        for spec in specs:
            await self._load_all(spec)
            await self._sizes(spec, sizes_of(spec, wanted)[:1], must=True)
        if not self._notebook.has_node:
            self._notebook.add(await self._node(specs[0]))
        for spec in specs:
            await self._sizes(spec, sizes_of(spec, wanted)[1:], must=False)

    async def _load_all(self, spec: PipelineSpec) -> None:
        """Load all stages everywhere; measure it on the first device if nobody has."""
        known = self._notebook.has_loads(spec)
        first, *others = self._executor.devices
        for stage in spec.stages:
            self._tell(f"{stage}: weights")
            file_s, host_s = await self._executor.load(first, stage), list[float]()
            while not known and len(host_s) < self._repetitions:
                await self._executor.unload(first, stage)
                host_s.append(await self._executor.load(first, stage))
            for device in others:
                await self._executor.load(device, stage)
            if not known:
                figure = LoadFigure(
                    model=spec.id, stage=stage.kind, file_s=file_s, host_s=tuple(host_s)
                )
                self._notebook.add(figure)

    async def _sizes(self, spec: PipelineSpec, sizes: Sequence[Shape], *, must: bool) -> None:
        for degree in (k for k in self._degrees if k in spec.degrees):
            for shape in sizes:
                name = f"{spec.id} {shape}" + (f" on {degree} devices" if degree > 1 else "")
                if self._notebook.has(spec, shape, degree):
                    continue
                if not must and self._expected_s(spec, shape) > self._left_s():
                    self.left_out.append(f"{name}, for want of time")
                    continue
                self._tell(name)
                try:
                    figures = await self._chain(spec, shape, degree)
                except StageFailedError as error:
                    if degree == 1:
                        raise
                    self.left_out.append(f"{name}: {error}")
                else:
                    for figure in figures:
                        self._notebook.add(figure)

    def _expected_s(self, spec: PipelineSpec, shape: Shape) -> float:
        """Reckon with the square of the pixels, from the largest size that was measured."""
        known = [
            f
            for f in self._notebook.figures
            if isinstance(f, Figure) and f.model == spec.id and f.stage is StageKind.DIFFUSE
        ]
        if not known:
            return 0.0
        largest = max(known, key=lambda f: f.shape.pixels)
        ratio = max(1.0, shape.pixels / largest.shape.pixels)
        return 1.5 * (1 + self._repetitions) * spec.default_steps * median(largest.run_s) * ratio**2

    def _left_s(self) -> float:
        return self._limit_s - (time.monotonic() - self._began_s)

    def _tell(self, what: str) -> None:
        self._say(what, min(1.0, 1 - self._left_s() / self._limit_s))

    async def _chain(self, spec: PipelineSpec, shape: Shape, degree: int) -> list[Figure]:
        """Run whole requests of one size; the first warms up and does not count."""
        steps = spec.default_steps
        kept: dict[StageKind, list[_Run]] = {kind: [] for kind in StageKind}
        for number in range(1 + self._repetitions):
            wish = a_wish(spec, shape, steps)
            ref: HandoffRef | None = None
            for kind in StageKind:
                width = degree if kind is StageKind.DIFFUSE else 1
                team = self._executor.devices[:width]
                run = await self._run(self._launch(spec, wish, kind, team, ref=ref))
                if ref is not None:
                    self._executor.release(ref)
                ref = run.report.output
                if number:
                    kept[kind].append(run)
                elif kind is StageKind.DIFFUSE and run.step_s > _LONG_STEP_S:
                    steps = min(steps, _FEW_STEPS)
        mine = (StageKind.DIFFUSE,) if degree > 1 else tuple(StageKind)
        if self._has_encode(spec):
            mine = tuple(kind for kind in mine if kind is not StageKind.ENCODE)
        return [_figure(spec, shape, kind, degree, kept[kind]) for kind in mine]

    def _has_encode(self, spec: PipelineSpec) -> bool:
        return any(
            isinstance(f, Figure) and f.model == spec.id and f.stage is StageKind.ENCODE
            for f in self._notebook.figures
        )

    def _launch(
        self,
        spec: PipelineSpec,
        wish: GenerationRequest,
        kind: StageKind,
        team: Sequence[DeviceId],
        *,
        ref: HandoffRef | None = None,
        saved: SavedLatent | None = None,
    ) -> Assignment:
        number = next(self._ids)
        task = StageTask(
            id=TaskId(f"profile-{number}"),
            request=wish,
            node=NodeId(f"{kind.value}-{number}"),
            stage=spec.stage(kind),
            image_index=0,
            inputs=() if ref is None else (ref,),
            sequence=0,
            attempt=1,
            ready_s=0.0,
            saved=saved,
        )
        return Assignment(
            task=task, team=tuple(team), expected_s=0.0, activation_bytes=0, why="measured"
        )

    async def _run(self, launch: Assignment) -> _Run:
        memory = HighWater(self._executor.process_ids().get(launch.team[0]))
        began = time.perf_counter()
        (report, *_others) = await self._executor.run(launch)
        wall_s = time.perf_counter() - began
        peak = report.peak_memory_bytes or memory.bytes_since()
        return _Run(report=report, wall_s=wall_s, peak_bytes=peak)

    async def _node(self, spec: PipelineSpec) -> NodeFigure:
        self._tell("pausing, and all devices at once")
        return NodeFigure(
            memory_bytes=min(self._memory.values()),
            change_s=await self._changes(spec),
            slowdown=await self._slowdown(spec),
        )

    async def _changes(self, spec: PipelineSpec) -> tuple[float, ...]:
        """Pause and resume a diffuse; return the seconds that it took longer than undisturbed."""
        team = self._executor.devices[:1]
        wish = a_wish(spec, spec.default_shape, max(_FEW_STEPS, spec.default_steps))
        encoded = await self._encoded(spec, wish, team)
        extra_s = []
        for _ in range(self._repetitions):
            plain = await self._run(self._launch(spec, wish, StageKind.DIFFUSE, team, ref=encoded))
            self._release(plain.report)
            self._stepped.clear()
            launch = self._launch(spec, wish, StageKind.DIFFUSE, team, ref=encoded)
            running = asyncio.create_task(self._run(launch))
            await self._stepped.wait()
            self._executor.pause(launch)
            half = await running
            if half.report.paused and half.report.output is not None:
                saved = SavedLatent(half.report.steps_done, half.report.output)
                rest = self._launch(spec, wish, StageKind.DIFFUSE, team, ref=encoded, saved=saved)
                resumed = await self._run(rest)
                extra_s.append(half.wall_s + resumed.wall_s - plain.wall_s)
                self._release(resumed.report)
            self._release(half.report)
        self._executor.release(encoded)
        return tuple(extra_s)

    async def _encoded(
        self, spec: PipelineSpec, wish: GenerationRequest, team: Sequence[DeviceId]
    ) -> HandoffRef:
        run = await self._run(self._launch(spec, wish, StageKind.ENCODE, team))
        assert run.report.output is not None  # every encode hands something on
        return run.report.output

    def _release(self, report: StageReport) -> None:
        if report.output is not None:
            self._executor.release(report.output)

    async def _slowdown(self, spec: PipelineSpec) -> tuple[float, ...]:
        """Diffuse on 1, 2, .. devices at once; return how many times as long each takes."""
        wish = a_wish(spec, spec.default_shape, spec.default_steps)
        devices = self._executor.devices
        encoded = await self._encoded(spec, wish, devices[:1])
        each_s: list[float] = []
        for count in range(1, len(devices) + 1):
            taken_s: list[float] = []
            for _ in range(1 + self._repetitions):
                launches = (
                    self._launch(spec, wish, StageKind.DIFFUSE, (device,), ref=encoded)
                    for device in devices[:count]
                )
                runs = await asyncio.gather(*(self._run(launch) for launch in launches))
                taken_s += [run.report.run_s for run in runs]
                for run in runs:
                    self._release(run.report)
            each_s.append(median(taken_s[count:]))  # the first round warms the devices up
        self._executor.release(encoded)
        return tuple(max(1.0, seconds / each_s[0]) for seconds in each_s)

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
        self._stepped.set()


class _Run(msgspec.Struct, frozen=True):
    """One execution: what the worker reported and what it took as seen from here."""

    report: StageReport
    wall_s: float
    peak_bytes: int

    @property
    def step_s(self) -> float:
        """Seconds of one denoise step."""
        return self.report.run_s / max(1, self.report.steps_done)


def _figure(
    spec: PipelineSpec, shape: Shape, kind: StageKind, degree: int, runs: Sequence[_Run]
) -> Figure:
    diffuses = kind is StageKind.DIFFUSE
    return Figure(
        model=spec.id,
        stage=kind,
        shape=shape,
        degree=degree if diffuses else 1,
        batch=1,
        run_s=tuple(run.step_s if diffuses else run.report.run_s for run in runs),
        arrival_s=tuple(
            max(0.0, run.wall_s - run.report.run_s - run.report.send_s) for run in runs
        ),
        send_s=tuple(run.report.send_s for run in runs),
        output_bytes=max(
            0 if r.report.output is None else r.report.output.size_bytes for r in runs
        ),
        peak_bytes=max(run.peak_bytes for run in runs),
        exact_peak=any(run.report.peak_memory_bytes for run in runs),
    )


class HighWater:
    """The most resident memory that a process of this machine has had since now.

    Linux tells and resets it; elsewhere the answer is 0. A process that keeps freed memory for
    itself hides what it uses again, so the largest of several runs is the figure.
    """

    def __init__(self, pid: int | None) -> None:
        """Begin at what it has now."""
        self._folder = None if pid is None else Path(f"/proc/{pid}")
        self._base_bytes = 0
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / "clear_refs").write_text("5")
                self._base_bytes = self._read("VmRSS:")

    def bytes_since(self) -> int:
        """Return by how much it has grown at most."""
        if self._folder is None or not self._base_bytes:
            return 0
        with suppress(OSError):
            return max(0, self._read("VmHWM:") - self._base_bytes)
        return 0

    def _read(self, field: str) -> int:
        assert self._folder is not None  # asked only where there is a process
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * _KIB
        return 0


def a_wish(spec: PipelineSpec, shape: Shape, steps: int) -> GenerationRequest:
    """Return the request that is measured."""
    return GenerationRequest(
        id=RequestId("profile"),
        model=spec.id,
        prompt=_PROMPT,
        shape=shape,
        steps=steps,
        guidance_scale=spec.default_guidance,
        seed=0,
        arrival_s=0.0,
        deadline_s=0.0,
        media=MediaFormat.MP4 if spec.modality is Modality.VIDEO else MediaFormat.PNG,
        fps=spec.default_fps,
    )

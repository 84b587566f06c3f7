"""Measures stages on the devices that are here, through the worker processes that serve.

Knows what is measured in which order and how long it may take; `gateway.executions` measures, the
notebook keeps figures, so that an interrupted run goes on where it stopped. Bounded in time: the
default size of every model always; further sizes, degrees and batches as far as the minutes reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from engine import InvalidRequestError, Shape, StageFailedError
from engine.types import StageKind
from gateway.executions import Executions
from gateway.node_probe import probe_node
from gateway.notebook import Notebook
from schedulers.profiles.measured import LoadFigure

if TYPE_CHECKING:
    from engine import PipelineSpec
    from engine.executors.local import LocalExecutor

_SCALES: Final = (0.5, 0.75, 1.5, 2.0)  # of the default size's sides
_MIXED_SIZES: Final = 2  # that run in turn when all devices work at once


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


class Point(NamedTuple):
    """What is measured in one go: a size of a model at a degree and a batch."""

    spec: PipelineSpec
    shape: Shape
    degree: int = 1
    batch: int = 1

    def __str__(self) -> str:
        """Return what a person calls it."""
        devices = f" on {self.degree} devices" if self.degree > 1 else ""
        together = f", {self.batch} together" if self.batch > 1 else ""
        return f"{self.spec.id} {self.shape}{devices}{together}"


class Profiler:
    """Measures everything that fits into the time.

    Args:
        degrees: those that the executor can run; each model is measured at its own of them.
        batches: requests that share a launch, on one device; 1 always is one of them.
        say: told what is measured now, and how far it has come (0 to 1).
        now: the clock of all seconds that are not a worker's own.
    """

    def __init__(
        self,
        executor: LocalExecutor,
        notebook: Notebook,
        *,
        degrees: Sequence[int],
        batches: Sequence[int],
        repetitions: int,
        minutes: float,
        say: Callable[[str, float], None],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with no worker up."""
        self._executions, self._now = Executions(executor, now), now
        self._notebook, self._say = notebook, say
        self._degrees, self._batches, self._repetitions = tuple(degrees), batches, repetitions
        self._limit_s, self._began_s = 60 * minutes, now()
        self.left_out: list[str] = []

    async def measure(self, specs: Sequence[PipelineSpec], wanted: Sequence[Shape]) -> None:
        """Measure all models; what is left out for want of time is in `left_out`."""
        await self._executions.start()
        for spec in specs:
            await self._load_all(spec)
            for degree in self._degrees_of(spec):
                await self._measure(Point(spec, spec.default_shape, degree), must=True)
        for point in self._sizes(specs, wanted):
            await self._measure(point)
        for point in self._decodes(specs):
            await self._measure_decode(point)
        if not self._notebook.has_node:
            await self._node(specs[0])
        for point in self._shared(specs):
            await self._measure(point)

    def _degrees_of(self, spec: PipelineSpec) -> list[int]:
        return [degree for degree in self._degrees if degree in spec.degrees]

    def _sizes(self, specs: Sequence[PipelineSpec], wanted: Sequence[Shape]) -> Iterator[Point]:
        """Yield further sizes at all degrees."""
        for spec in specs:
            for degree in self._degrees_of(spec):
                for shape in sizes_of(spec, wanted)[1:]:
                    yield Point(spec, shape, degree)

    def _decodes(self, specs: Sequence[PipelineSpec]) -> Iterator[Point]:
        """Yield decodes that a team can share out, of all sizes that were measured."""
        for spec in specs:
            figures = self._notebook.of(spec, StageKind.DECODE)
            for shape in dict.fromkeys(f.shape for f in figures if f.degree == f.batch == 1):
                parts = spec.decode_parts(shape)
                for degree in (k for k in self._degrees if 1 < k <= parts):
                    yield Point(spec, shape, degree)

    def _shared(self, specs: Sequence[PipelineSpec]) -> Iterator[Point]:
        """Yield batches of all sizes that were measured."""
        for spec in specs:
            singles = [f for f in self._notebook.of(spec, StageKind.DIFFUSE) if f.batch == 1]
            for batch in (b for b in self._batches if b > 1):
                for shape in dict.fromkeys(f.shape for f in singles if f.degree == 1):
                    yield Point(spec, shape, batch=batch)

    async def _load_all(self, spec: PipelineSpec) -> None:
        """Load all stages everywhere; measure it on the first device if nobody has."""
        known = self._notebook.has_loads(spec)
        first, *others = self._executions.devices
        for kind in StageKind:
            self._tell(f"{spec.stage(kind)}: weights")
            file_s, host_s = await self._executions.load(first, kind, spec), list[float]()
            while not known and len(host_s) < self._repetitions:
                host_s.append(await self._executions.reload(first, kind, spec))
            for device in others:
                await self._executions.load(device, kind, spec)
            if not known:
                figure = LoadFigure(model=spec.id, stage=kind, file_s=file_s, host_s=tuple(host_s))
                self._notebook.add(figure)

    async def _measure(self, point: Point, *, must: bool = False) -> None:
        spec, shape, degree, batch = point
        if self._notebook.has(spec, shape, degree, batch):
            return
        if not must and self._expected_s(point) > self._left_s():
            self.left_out.append(f"{point}, for want of time")
            return
        self._tell(str(point))
        try:
            figures = await self._executions.chain(
                spec, shape, self._repetitions, degree=degree, batch=batch
            )
        except StageFailedError as error:
            if point == Point(spec, spec.default_shape):
                raise
            self.left_out.append(f"{point}: {error}")
            return
        known = {(f.batch, f.stage) for f in self._notebook.of(spec, StageKind.ENCODE)}
        for figure in figures:  # an encode knows no size, and only a diffuse degrees
            is_new = (figure.batch, figure.stage) not in known
            if is_new and (degree == 1 or figure.stage is StageKind.DIFFUSE):
                self._notebook.add(figure)

    async def _measure_decode(self, point: Point) -> None:
        spec, shape, degree, _ = point
        known = {
            (f.shape, f.degree): f
            for f in self._notebook.of(spec, StageKind.DECODE)
            if f.batch == 1
        }
        if (shape, degree) in known:
            return
        one_s = median(known[shape, 1].run_s)
        if (2 + self._repetitions) * one_s > self._left_s():
            self.left_out.append(f"decode of {point}, for want of time")
            return
        self._tell(f"decode of {point}")
        try:
            figure = await self._executions.decodes(spec, shape, self._repetitions, degree=degree)
        except StageFailedError as error:
            self.left_out.append(f"decode of {point}: {error}")
        else:
            self._notebook.add(figure)

    def _expected_s(self, point: Point) -> float:
        """Reckon with the square of the pixels, from the largest size that was measured."""
        known = [f for f in self._notebook.of(point.spec, StageKind.DIFFUSE) if f.batch == 1]
        if not known:
            return 0.0
        largest = max(known, key=lambda f: f.shape.pixels)
        ratio = max(1.0, point.shape.pixels / largest.shape.pixels) ** 2
        one_s = point.spec.default_steps * median(largest.run_s) * ratio * point.batch
        return 1.5 * (1 + self._repetitions) * one_s

    async def _node(self, spec: PipelineSpec) -> None:
        self._tell("pausing, and all devices at once")
        alone_s = {
            f.shape: median(f.run_s)
            for f in self._notebook.of(spec, StageKind.DIFFUSE)
            if f.degree == f.batch == 1
        }
        mixed = dict(list(alone_s.items())[:_MIXED_SIZES])
        self._notebook.add(await probe_node(self._executions, spec, mixed, self._repetitions))

    def _left_s(self) -> float:
        return self._limit_s - (self._now() - self._began_s)

    def _tell(self, what: str) -> None:
        self._say(what, min(1.0, 1 - self._left_s() / self._limit_s))

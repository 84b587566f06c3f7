"""Random states of a cluster in the middle of its work: to time and to test single decisions.

A state is what a dispatcher sees: diffuses in the air on some devices, others idle, and requests
that wait to diffuse, from fresh to hopelessly late. The same seed gives the same state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import count

import msgspec

from engine.pipelines import PipelineSpec
from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    GenerationRequest,
    ModelId,
    NodeId,
    RequestId,
    RunningView,
    Shape,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.cost import CostModel
from schedulers.profile import load_profile, specs_of
from schedulers.sim.mixes import MIXES
from schedulers.sim.world import cluster_of

NOW_S = 10_000.0
SLO_SCALE = 2.5


class State(msgspec.Struct, frozen=True):
    """What one decision is made from."""

    waiting: tuple[StageTask, ...]
    view: ClusterView


class States:
    """Draws states of one deployment."""

    def __init__(
        self, models: Sequence[str], *, gpus: int, profile: str = "l20", nodes: int | None = None
    ) -> None:
        """Load the profile; every device holds every stage."""
        loaded = load_profile(profile)
        self.specs: tuple[PipelineSpec, ...] = specs_of(loaded, models)
        self.cost = CostModel(self.specs, loaded, learn=False)
        self._infos = cluster_of(loaded, gpus, nodes)
        self._stages = frozenset(stage for spec in self.specs for stage in spec.stages)

    def draw(self, seed: int, *, waiting: int, idle: float = 0.5) -> State:
        """Return a state with a share of idle devices and this many requests that wait."""
        rng, numbers = random.Random(f"state/{seed}"), count()  # noqa: S311 - replays
        running = tuple(self._fill(rng, numbers, idle))
        tasks = tuple(self._task(rng, next(numbers)) for _ in range(waiting))
        ends = {device: run.ends_s for run in running for device in run.assignment.team}
        view = ClusterView(
            configured=tuple(info.id for info in self._infos),
            devices=tuple(self._device(info, ends.get(info.id)) for info in self._infos),
            weight_bytes={s: size for spec in self.specs for s, size in self._weights(spec)},
            now_s=NOW_S,
            running=running,
        )
        return State(tasks, view)

    def _device(self, info: DeviceInfo, busy_until_s: float | None) -> DeviceView:
        return DeviceView(
            info=info,
            capacity_bytes=info.memory_bytes,
            free_bytes=info.memory_bytes,
            resident=self._stages,
            desired=self._stages,
            busy_until_s=busy_until_s,
        )

    def _weights(self, spec: PipelineSpec) -> Iterator[tuple[StageKey, int]]:
        for stage in spec.stages:
            yield stage, spec.weight_bytes[stage.kind]

    def _fill(
        self, rng: random.Random, numbers: Iterator[int], idle: float
    ) -> Iterator[RunningView]:
        """Yield diffuses on each node until about the wanted share of devices is idle."""
        by_node: dict[str, list[DeviceId]] = {}
        for info in self._infos:
            by_node.setdefault(info.node, []).append(info.id)
        for devices in by_node.values():
            free = list(devices)
            while free:
                task = self._task(rng, next(numbers))
                least = self.cost.min_degree(task.request.model, task.request.shape)
                fitting = [
                    k for k in self.cost.degrees(task.request.model) if least <= k <= len(free)
                ]
                width = rng.choice(fitting) if fitting else len(free)
                if fitting and rng.random() >= idle:
                    yield self._running(rng, task, tuple(free[:width]))
                del free[:width]

    def _running(
        self, rng: random.Random, task: StageTask, team: tuple[DeviceId, ...]
    ) -> RunningView:
        request = task.request
        step_s = self.cost.step_s(request.model, request.shape, len(team))
        step, part = rng.randrange(request.steps), rng.random()
        boundary_s = NOW_S - part * step_s
        return RunningView(
            assignment=Assignment(
                task=task,
                team=team,
                expected_s=request.steps * step_s,
                activation_bytes=0,
                why="drawn",
            ),
            started_s=boundary_s - step * step_s,
            ends_s=boundary_s + (request.steps - step) * step_s,
            step=step,
            step_at_s=boundary_s,
            is_changing=False,
        )

    def _task(self, rng: random.Random, number: int) -> StageTask:
        """Return a ready diffuse whose slack is drawn from fresh to late by a reference latency."""
        model = rng.choice(self.specs).id
        size = rng.choice(MIXES[model].sizes)
        request = self._request(model, Shape(size.width, size.height, size.frames), number)
        reference_s = self.cost.reference_s(request)
        age_s = rng.uniform(0.0, SLO_SCALE) * reference_s
        due = msgspec.structs.replace(
            request,
            arrival_s=NOW_S - age_s,
            deadline_s=NOW_S - age_s + SLO_SCALE * reference_s,
        )
        return StageTask(
            id=TaskId(f"t{number}"),
            request=due,
            node=NodeId("diffuse"),
            stage=StageKey(model, StageKind.DIFFUSE),
            image_index=0,
            inputs=(),
            sequence=number,
            attempt=1,
            ready_s=NOW_S,
        )

    def _request(self, model: ModelId, shape: Shape, number: int) -> GenerationRequest:
        return GenerationRequest(
            id=RequestId(f"r{number}"),
            model=model,
            prompt="",
            shape=shape,
            steps=MIXES[model].steps,
            guidance_scale=1.0,
            seed=0,
            arrival_s=NOW_S,
            deadline_s=NOW_S,
        )

"""Measures what does not depend on the model: pauses, and devices that work at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from itertools import cycle, islice
from statistics import median
from typing import TYPE_CHECKING

from engine import Shape
from engine.types import DeviceId, SavedLatent, StageKind
from gateway.executions import Executions, Taken, a_wish
from schedulers.profiles.measured import NodeFigure

if TYPE_CHECKING:
    from engine import PipelineSpec

_LEAST_STEPS = 4


async def probe_node(
    executions: Executions,
    spec: PipelineSpec,
    step_s: Mapping[Shape, float],
    repetitions: int,
) -> NodeFigure:
    """Return what the node adds; `step_s` is what a denoise step takes alone, by size."""
    return NodeFigure(
        memory_bytes=executions.memory_bytes,
        change_s=await _changes(executions, spec, repetitions),
        slowdown=await _slowdown(executions, spec, step_s, repetitions),
        launch_s=await _launches(executions, spec, repetitions),
    )


async def _launches(
    executions: Executions, spec: PipelineSpec, repetitions: int
) -> tuple[float, ...]:
    """Encode; return the seconds beside the encode itself: messages there and back."""
    wish, taken_s = a_wish(spec, spec.default_shape, spec.default_steps), list[float]()
    for _ in range(repetitions):
        launch = executions.launch(spec, [wish], StageKind.ENCODE, executions.devices[:1])
        taken = await executions.run(launch)
        executions.release(taken.refs)
        taken_s.append(taken.arrival_s)
    return tuple(taken_s)


async def _changes(
    executions: Executions, spec: PipelineSpec, repetitions: int
) -> tuple[float, ...]:
    """Pause and resume a diffuse; return the seconds that it took longer than undisturbed."""
    team = executions.devices[:1]
    wish = a_wish(spec, spec.default_shape, max(_LEAST_STEPS, spec.default_steps))
    encoded = await executions.run(executions.launch(spec, [wish], StageKind.ENCODE, team))
    extra_s = list[float]()

    async def diffuse(saved: SavedLatent | None = None, *, pause: bool = False) -> Taken:
        launch = executions.launch(spec, [wish], StageKind.DIFFUSE, team, encoded.refs, saved=saved)
        executions.stepped.clear()
        running = asyncio.create_task(executions.run(launch))
        if pause:
            await executions.stepped.wait()
            executions.pause(launch)
        return await running

    for _ in range(repetitions):
        plain, half = await diffuse(), await diffuse(pause=True)
        if half.report.paused:
            resumed = await diffuse(SavedLatent(half.report.steps_done, half.refs[0]))
            extra_s.append(half.wall_s + resumed.wall_s - plain.wall_s)
            executions.release(resumed.refs)
        executions.release((*plain.refs, *half.refs))
    executions.release(encoded.refs)
    return tuple(extra_s)


async def _slowdown(
    executions: Executions,
    spec: PipelineSpec,
    step_s: Mapping[Shape, float],
    repetitions: int,
) -> tuple[float, ...]:
    """Diffuse on 1, 2, .. devices at once, sizes in turn, as when serving.

    Returns how many times as long a step takes as when its size ran alone, again and again. Sizes in
    turn find caches and heaps as the other size has left them, which is a part of it.
    """
    found = list[float]()
    for count in range(1, len(executions.devices) + 1):
        lanes = [
            _lane(executions, spec, device, islice(cycle(step_s), first, first + 1 + repetitions))
            for first, device in enumerate(executions.devices[:count])
        ]
        ratios = [
            one.step_s / step_s[shape]
            for lane in await asyncio.gather(*lanes)
            for shape, one in lane[1:]  # the first warms the device up
        ]
        found.append(median(ratios))
    return tuple(max(1.0, ratio) for ratio in found)


async def _lane(
    executions: Executions, spec: PipelineSpec, device: DeviceId, shapes: Iterable[Shape]
) -> list[tuple[Shape, Taken]]:
    """Run requests of some sizes one after another on a device; return their diffuses."""
    found = list[tuple[Shape, Taken]]()
    for shape in shapes:
        wish = a_wish(spec, shape, spec.default_steps)
        encoded = await executions.run(executions.launch(spec, [wish], StageKind.ENCODE, [device]))
        launch = executions.launch(spec, [wish], StageKind.DIFFUSE, [device], encoded.refs)
        found.append((shape, await executions.run(launch)))
        executions.release((*encoded.refs, *found[-1][1].refs))
    return found

"""Devices with a pace of their own: real workers whose launches last as long as a profile says.

Two cores cannot be four devices: what four workers take from each other, and what else the machine
does, would decide when a test is over. So the work itself is small and real (processes, messages,
loads, hand-offs, pictures), and its report is held back until the device's time is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from engine.types import Assignment, DeviceId, HandoffRef, NodeId, StageKey, TaskId

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import Clock, DeviceListener, Executor
    from schedulers.sim.world import World


class PacedExecutor:
    """Passes everything on to `inner`; a device is done with a launch when `world` says so.

    Work that takes longer than that is late by itself: `overruns` counts it.
    """

    def __init__(self, inner: Executor, clock: Clock, world: World) -> None:
        """Pace from the first launch on."""
        self._inner, self._clock, self._world = inner, clock, world
        self._free_s: dict[DeviceId, float] = {}
        self.launches = self.overruns = 0

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Those of the executor."""
        return self._inner.devices

    @property
    def is_whole(self) -> bool:
        """Whether the executor's are all."""
        return self._inner.is_whole

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run it, and return when it is over on a device of this pace."""
        now_s, team = self._clock.now(), assignment.team
        began_s = max(now_s, *(self._free_s.get(device, 0.0) for device in team))
        duration_s = self._world.duration_s(assignment)
        ends_s = began_s + duration_s
        self._free_s.update(dict.fromkeys(team, ends_s))
        try:
            reports = await self._inner.run(assignment)
        except BaseException:
            self._free_s.update(dict.fromkeys(team, self._clock.now()))
            raise
        if reports[0].paused:
            self._free_s.update(dict.fromkeys(team, self._clock.now()))
            return reports
        self.launches += 1
        self.overruns += self._clock.now() > ends_s
        await asyncio.sleep(max(0.0, ends_s - self._clock.now()))
        return tuple(msgspec.structs.replace(report, run_s=duration_s) for report in reports)

    async def start(self, listener: DeviceListener) -> None:
        """Pass it on."""
        await self._inner.start(listener)

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Pass it on."""
        return await self._inner.load(device, stage)

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Pass it on."""
        await self._inner.unload(device, stage)

    def pause(self, assignment: Assignment) -> None:
        """Pass it on."""
        self._inner.pause(assignment)

    def cancel(self, assignment: Assignment) -> None:
        """Pass it on."""
        self._inner.cancel(assignment)

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Pass it on."""
        return self._inner.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        """Pass it on."""
        self._inner.release(ref)

    def notices(self) -> tuple[str, ...]:
        """Pass it on."""
        return self._inner.notices()

    async def close(self) -> None:
        """Pass it on."""
        await self._inner.close()

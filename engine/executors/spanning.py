"""Devices of several machines as one executor: this one's, and those of nodes that lend theirs.

It sends every order to the node whose device it concerns. Teams never span nodes. What a launch
begins with may lie anywhere; if it went with a node, the launch is refused and what made it runs
again (`recovery`). What has to outlive a node lies here: sources, saved latents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from engine.errors import (
    HandoffLostError,
    RequestCancelledError,
    StageFailedError,
    WorkerLostError,
)
from engine.executors.following import Following
from engine.executors.local import node_of
from engine.executors.remote import inputs_of
from engine.types import Assignment, DeviceId, HandoffRef, NodeId, StageKey, TaskId

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import DeviceListener, Executor


class Node(Protocol):
    """Another machine: what an executor is, but that hand-offs are made elsewhere."""

    @property
    def name(self) -> str:
        """Before the slash in the ids of its devices."""
        ...

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """See `Executor.devices`."""
        ...

    @property
    def is_whole(self) -> bool:
        """See `Executor.is_whole`."""
        ...

    def holds(self, ref: HandoffRef) -> bool:
        """Whether a hand-off lies there."""
        ...

    async def start(self, listener: DeviceListener) -> None:
        """See `Executor.start`."""
        ...

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """See `Executor.load`."""
        ...

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """See `Executor.unload`."""
        ...

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """See `Executor.run`; a saved latent comes home."""
        ...

    def pause(self, assignment: Assignment) -> None:
        """See `Executor.pause`."""
        ...

    def cancel(self, assignment: Assignment) -> None:
        """See `Executor.cancel`."""
        ...

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """See `Executor.drop`."""
        ...

    def release(self, ref: HandoffRef) -> None:
        """Free a hand-off; harmless if it went with the node."""
        ...

    def notices(self) -> tuple[str, ...]:
        """See `Executor.notices`."""
        ...

    async def close(self) -> None:
        """See `Executor.close`."""
        ...


class SpanningExecutor:
    """The devices of `home`, which is this machine, and of other nodes."""

    def __init__(self, home: Executor, nodes: Sequence[Node]) -> None:
        """Start nothing yet."""
        self._home, self._nodes = home, {node.name: node for node in nodes}
        self._following = Following()

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Those of all nodes, as far as they were reached."""
        there = (device for node in self._nodes.values() for device in node.devices)
        return (*self._home.devices, *there)

    @property
    def is_whole(self) -> bool:
        """Whether every node was reached at least once."""
        return all(node.is_whole for node in self._nodes.values())

    async def start(self, listener: DeviceListener) -> None:
        """Start the workers here, and begin to look for the other nodes."""
        for node in self._all:
            await node.start(listener)

    @property
    def _all(self) -> tuple[Executor | Node, ...]:
        return (self._home, *self._nodes.values())

    def _of(self, device: DeviceId) -> Executor | Node:
        return self._nodes.get(node_of(device), self._home)

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage on the device's node."""
        return await self._of(device).load(device, stage)

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights on the device's node."""
        await self._of(device).unload(device, stage)

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a launch on its team's node, if all that it begins with is still there."""
        with self._following.after(assignment.follows):
            try:
                reports = await self._run(assignment)
            except (WorkerLostError, StageFailedError, RequestCancelledError):
                await asyncio.sleep(0)  # those that follow are on their way here
                await self._following.ended(assignment.task.id)
                raise
            if reports[0].paused:
                await self._following.ended(assignment.task.id)
            return reports

    async def _run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        self._expect(assignment, inputs_of(assignment))
        try:
            reports = await self._of(assignment.team[0]).run(assignment)
        except StageFailedError:
            self._expect(assignment, inputs_of(assignment))  # it may have failed for want of them
            raise
        outputs = tuple(report.output for report in reports if report.output is not None)
        self._expect(assignment, outputs)
        return reports

    def _expect(self, assignment: Assignment, refs: Sequence[HandoffRef]) -> None:
        lost = tuple(ref for ref in refs if ref.host and self._holder(ref) is None)
        if lost:
            where = ", ".join(sorted({ref.host for ref in lost}))
            message = f"Tensors of {assignment.task.id} went with the node that served {where}."
            raise HandoffLostError(message, lost)

    def _holder(self, ref: HandoffRef) -> Node | None:
        return next((node for node in self._nodes.values() if node.holds(ref)), None)

    def pause(self, assignment: Assignment) -> None:
        """Tell the team's node."""
        self._of(assignment.team[0]).pause(assignment)

    def cancel(self, assignment: Assignment) -> None:
        """Tell the team's node."""
        self._of(assignment.team[0]).cancel(assignment)

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Tell the team's node."""
        self._of(assignment.team[0]).drop(assignment, task)

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Make a hand-off here; it travels with the launch that needs it."""
        return self._home.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        """Free a hand-off where it lies; nothing is to do if it went with its node."""
        if not ref.host:
            self._home.release(ref)
        elif (node := self._holder(ref)) is not None:
            node.release(ref)

    def notices(self) -> tuple[str, ...]:
        """Return which nodes are away, and why."""
        return tuple(notice for node in self._all for notice in node.notices())

    async def close(self) -> None:
        """Let the other nodes go, then stop the workers here; idempotent."""
        await asyncio.gather(*(node.close() for node in self._nodes.values()))
        await self._home.close()  # last: what others have saved comes here

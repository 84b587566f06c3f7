"""What a witness is told of launches that end badly."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from engine.errors import WorkerLostError
from engine.executors.watching import LiveWitness, WatchedExecutor
from engine.messages import StageReport
from engine.ports import DeviceListener, Executor
from engine.types import (
    Assignment,
    DeviceId,
    HandoffRef,
    NodeId,
    SavedLatent,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.sim.clock import VirtualClock
from tests.support.builders import MODEL, a_report, a_request

DIFFUSE, DECODE = TaskId("r/diffuse/1"), TaskId("r/decode/1")


class Worker:
    """An executor whose launches end when and how a test says."""

    def __init__(self) -> None:
        self.ends: dict[TaskId, asyncio.Future[tuple[StageReport, ...]]] = {}

    async def start(self, listener: DeviceListener) -> None:
        self.listener = listener

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        end = self.ends[assignment.task.id] = asyncio.get_running_loop().create_future()
        return await end

    def die(self) -> None:
        for end in self.ends.values():
            if not end.done():
                end.set_exception(WorkerLostError("dead"))


class Witness:
    def __init__(self) -> None:
        self.runs: list[tuple[TaskId, tuple[int, int], str]] = []

    def ran(
        self, assignment: Assignment, started_s: float, steps: tuple[int, int], outcome: str
    ) -> None:
        del started_s
        self.runs.append((assignment.task.id, steps, outcome))


class Silent:
    def latent_saved(self, *told: object) -> None:
        pass


def launch(kind: StageKind, **changes: Any) -> Assignment:
    task = StageTask(
        id=TaskId(f"r/{kind.value}/1"), request=a_request("r", steps=10), node=NodeId(kind),
        stage=StageKey(MODEL, kind), image_index=0, inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    values = {"team": (DeviceId("d"),), "expected_s": 1.0, "activation_bytes": 0, "why": ""}
    return Assignment(**{"task": task, **values, **changes})


async def begun() -> tuple[Worker, Witness, asyncio.Future[Any]]:
    """Run a diffuse, with the order of the decode that follows sent ahead."""
    worker, witness = Worker(), Witness()
    watched = WatchedExecutor(
        cast("Executor", worker), VirtualClock(), cast("LiveWitness", witness)
    )
    await watched.start(cast("DeviceListener", Silent()))
    runs = (launch(StageKind.DIFFUSE), launch(StageKind.DECODE, follows=DIFFUSE))
    both = asyncio.gather(*(watched.run(run) for run in runs), return_exceptions=True)
    await asyncio.sleep(0)
    return worker, witness, both


async def test_a_failed_diffuse_counts_as_far_as_it_was_saved_and_what_never_began_not_at_all() -> (
    None
):
    worker, witness, both = await begun()
    for step in (3, 6):
        saved = SavedLatent(step, HandoffRef(NodeId("diffuse"), "path", 1))
        worker.listener.latent_saved(DIFFUSE, DIFFUSE, saved)
    worker.die()
    await both
    assert witness.runs == [(DIFFUSE, (0, 6), "failed")]


async def test_a_follower_that_fails_after_its_predecessor_is_told() -> None:
    worker, witness, both = await begun()
    worker.ends[DIFFUSE].set_result((a_report(launch(StageKind.DIFFUSE).task, steps_done=10),))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    worker.die()
    await both
    assert witness.runs == [(DIFFUSE, (0, 10), "done"), (DECODE, (0, 0), "failed")]

"""A request that another engine began: what was kept does not run again."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence

import pytest

from engine.journal import FinishedStage
from engine.types import (
    Artifact,
    Assignment,
    GenerationResult,
    HandoffRef,
    Held,
    NodeId,
    RequestId,
    StageKind,
    StageTiming,
    TaskId,
)
from schedulers.sim.clock import run_virtual
from tests.support.builders import a_request
from tests.support.engines import SimulatedEngine, simulated_engine


class Diary:
    """A journal that keeps everything."""

    def __init__(self, finished: Sequence[FinishedStage] = ()) -> None:
        self.finished = list(finished)

    def stage_finished(
        self, timing: StageTiming, output: HandoffRef | None, artifact: Artifact | None
    ) -> None:
        self.finished.append(
            FinishedStage(
                node=timing.node,
                timing=timing,
                content=None if output is None else b"x" * output.size_bytes,
                artifact=artifact,
            )
        )


async def run(diary: Diary, *, n: int) -> tuple[GenerationResult, SimulatedEngine]:
    sim = simulated_engine()
    await sim.core.start()
    result = await sim.core.generate(a_request(n=n), diary)
    await asyncio.sleep(0)
    sim.core.check_integrity()
    assert sim.executor.alive == {}
    await sim.core.close()
    return result, sim


def launched(sim: SimulatedEngine) -> list[str]:
    return sorted(task.split("/")[1] for task, _device, _start in sim.executor.launches)


def test_only_what_was_not_kept_runs_and_the_timeline_is_whole() -> None:
    async def scenario() -> None:
        diary = Diary()
        whole, first = await run(diary, n=2)
        order = [stage.node for stage in diary.finished]
        for kept in range(len(order) + 1):
            again, sim = await run(Diary(diary.finished[:kept]), n=2)
            assert launched(sim) == sorted(order[kept:])
            assert again.artifacts == whole.artifacts
            assert sorted(t.node for t in again.timeline) == sorted(order)
        assert launched(first) == sorted(order)

    run_virtual(scenario())


def test_the_last_word_on_every_stage_is_known_while_the_request_runs() -> None:
    async def scenario() -> None:
        sim = simulated_engine()
        await sim.core.start()
        calls = [asyncio.create_task(sim.core.generate(a_request(f"r{i}"))) for i in range(4)]
        await asyncio.sleep(5)
        first, last = (sim.core.decisions(RequestId(name)) for name in ("r0", "r3"))
        assert [d.task.stage.kind for d in first if isinstance(d, Assignment)] == [
            StageKind.ENCODE,
            StageKind.DIFFUSE,
        ]
        waiting = last[-1]
        assert isinstance(waiting, Held)
        assert waiting.reason
        await asyncio.gather(*calls)
        assert sim.core.decisions(RequestId("r0")) == ()
        await sim.core.close()

    run_virtual(scenario())


def test_a_stage_whose_bytes_were_lost_runs_again_with_what_it_needs() -> None:
    async def scenario() -> None:
        diary = Diary()
        await run(diary, n=1)
        encode = next(s for s in diary.finished if s.node == NodeId("encode"))
        lost = FinishedStage(node=encode.node, timing=encode.timing)
        again, sim = await run(Diary([lost]), n=1)
        assert launched(sim) == sorted(stage.node for stage in diary.finished)
        assert len(again.timeline) == len(diary.finished)

    run_virtual(scenario())


def test_what_cannot_be_resumed_for_want_of_room_leaves_nothing_and_can_come_again() -> None:
    async def scenario() -> None:
        diary = Diary()
        await run(diary, n=2)
        kept = [stage for stage in diary.finished if stage.content is not None]
        assert [stage.node for stage in kept] == ["encode", "diffuse-0", "diffuse-1"]
        sim = simulated_engine()
        await sim.core.start()
        restore, room = sim.executor.restore, 1

        def crowded(task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
            if len(sim.executor.alive) >= room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return restore(task, node, content)

        sim.executor.restore = crowded  # type: ignore[method-assign]
        with pytest.raises(OSError, match="No space left"):
            await sim.core.generate(a_request(n=2), Diary(kept))
        assert sim.executor.alive == {}
        room = 2
        await sim.core.generate(a_request(n=2), Diary(kept))
        assert sim.executor.alive == {}
        await sim.core.close()

    run_virtual(scenario())

"""When a worker that beats is taken for hung: no answer on a socket on which somebody waits."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.executors.lines import Lines
from engine.executors.slot import LOAD_SUFFIX, STALL_S, WorkerSettings, WorkerSlot
from engine.messages import (
    FromWorker,
    LoadSource,
    LoadStage,
    RunStage,
    StageLoaded,
    StepDone,
    ToLoader,
    ToWorker,
)
from engine.types import DeviceId, StageKey, StageKind, TaskId
from tests.support.builders import MODEL

DEVICE, TASK = DeviceId("cpu:0"), TaskId("r/diffuse-0/1")
STAGE = StageKey(MODEL, StageKind.DECODE)


class Worker:
    """A slot whose process does what the test says, at times that it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("engine.executors.slot.time.monotonic", lambda: self.now_s)
        spawner: Any = None
        settings = WorkerSettings("ipc://nobody", Path(), Path(), 1)
        self.slot = WorkerSlot(DEVICE, settings, spawner)
        process: Any = object()
        self.slot._process, self.slot.is_ready = process, True
        self.slot.excuse_silence()
        self.lines = Lines("ipc://nobody", {DEVICE: self.slot}, lambda _slot, _word: None)
        self.lines._post = lambda *_order: None  # type: ignore[method-assign]

    def asks(self, key: str, order: ToLoader | ToWorker) -> None:
        call: Any = self.lines.call_loader if isinstance(order, LoadStage) else self.lines.call
        call(DEVICE, key, order)

    def says(self, word: FromWorker, socket: str = "") -> None:
        self.lines._take(self.slot, msgspec.msgpack.encode(word), socket)

    def why_hung_after(self, passed_s: float) -> str | None:
        self.now_s += passed_s
        self.slot.beat()
        return self.slot.why_hung()

    def loads(self) -> None:
        self.asks(f"load {STAGE}", LoadStage(STAGE, "folder", "sd"))

    def has_loaded(self) -> None:
        self.says(StageLoaded(STAGE, 1.0, LoadSource.HOST), LOAD_SUFFIX)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Worker(monkeypatch)
    yield made
    made.lines.close()


async def test_loads_that_end_do_not_hide_a_launch_that_hangs(worker: Worker) -> None:
    worker.asks(TASK, RunStage((), 1))
    whys = []
    for _ in range(3):
        worker.loads()
        whys.append(worker.why_hung_after(STALL_S / 2 - 1))
        worker.has_loaded()
        await asyncio.sleep(0)
    assert whys == [None, None, f"no progress for {1.5 * STALL_S - 3:.0f} s"]


async def test_steps_do_not_hide_a_load_that_hangs(worker: Worker) -> None:
    worker.loads()
    worker.asks(TASK, RunStage((), 1))
    for step in (1, 2):
        assert worker.why_hung_after(STALL_S / 3) is None
        worker.says(StepDone(TASK, step, 9))
    assert worker.why_hung_after(STALL_S / 3 + 1) is not None


async def test_further_orders_do_not_excuse_one_that_hangs(worker: Worker) -> None:
    worker.asks(TASK, RunStage((), 1))
    assert worker.why_hung_after(STALL_S - 1) is None
    worker.asks(TaskId("r/decode-0/1"), RunStage((), 2))
    assert worker.why_hung_after(2) is not None


async def test_the_time_to_answer_begins_with_the_order(worker: Worker) -> None:
    assert worker.why_hung_after(2 * STALL_S) is None
    worker.loads()
    assert worker.why_hung_after(STALL_S - 1) is None

"""What a worker reports of a stage that fails: memory, NaN, bugs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
import torch

from engine.errors import NotFiniteError, StageFailedError
from engine.executors.lines import _answer
from engine.executors.mailbox import Mailbox
from engine.messages import FromWorker, LoadStage, RunStage, TaskFailed
from engine.stages.base import Job
from engine.stages.finite import expect_finite
from engine.stages.groups import Groups
from engine.stages.loader_thread import LoaderThread
from engine.stages.running import Said, TaskRunner
from engine.stages.shelf import Loaded, StageShelf
from engine.stages.team import Team
from engine.stages.transport import FileTransport
from engine.types import NodeId, StageKey, StageKind, StageTask, TaskId
from tests.support.builders import MODEL, a_request


class NoOrders:
    def report_step(self, launch: TaskId, step: int, steps: int) -> None:
        raise AssertionError((launch, step, steps))

    def hear(self, _launch: TaskId, _task: TaskId) -> Said:
        return Said.NOTHING

    def report_saved(self, *told: object) -> None:
        raise AssertionError(told)


class FailingStage:
    def __init__(self, fail: Callable[[], None]) -> None:
        self._fail = fail

    def run(self, _jobs: Sequence[Job], _team: Team) -> None:
        self._fail()


def outcome(tmp_path: Path, fail: Callable[[], None], device_name: str = "cpu") -> TaskFailed:
    device, stage = torch.device(device_name), StageKey(MODEL, StageKind.DIFFUSE)
    stages: dict[StageKey, Any] = {stage: FailingStage(fail)}
    runner = TaskRunner(
        stages, FileTransport(tmp_path, device), device, Groups(tmp_path, device), NoOrders()
    )
    task = StageTask(
        id=TaskId("t"), request=a_request(), node=NodeId("diffuse-0"), stage=stage, image_index=0,
        inputs=(), sequence=0, attempt=1, ready_s=0.0,
    )  # fmt: skip
    report = runner.run(RunStage((task,), launch=1))
    assert isinstance(report, TaskFailed)
    return report


def too_much_for_the_allocator() -> None:
    torch.empty(1 << 55)


def too_much_for_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fail", [too_much_for_the_allocator, too_much_for_the_gpu])
def test_wanting_memory_may_be_tried_again(tmp_path: Path, fail: Callable[[], None]) -> None:
    report = outcome(tmp_path, fail)
    assert (report.retryable, report.not_finite) == (True, False)


@pytest.mark.parametrize("is_retryable", [True, False])
def test_what_knows_whether_it_may_be_tried_again_is_believed(
    tmp_path: Path,
    is_retryable: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    def unreachable() -> None:
        raise StageFailedError("Node b did not hand over diffuse-0.", retryable=is_retryable)

    report = outcome(tmp_path, unreachable)
    assert (report.error, report.retryable) == ("Node b did not hand over diffuse-0.", is_retryable)


class FailingShelf(StageShelf):
    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__(torch.device("cpu"))
        self._fail = fail

    def load(self, _order: LoadStage, _stopped: object = None) -> Loaded:
        self._fail()
        raise AssertionError


@pytest.mark.parametrize(
    ("fail", "is_retryable"),
    [(too_much_for_the_allocator, True), (too_much_for_the_gpu, True), (lambda: {}["no"], False)],
)
async def test_a_load_for_which_memory_is_wanting_may_be_tried_again_too(
    fail: Callable[[], None],
    is_retryable: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    loader = LoaderThread("inproc://nobody", "cpu:0#0", FailingShelf(fail))
    order = LoadStage(StageKey(MODEL, StageKind.DIFFUSE), "folder", "flux")
    said = msgspec.msgpack.encode(loader._load(order))
    mailbox = Mailbox()
    reply = mailbox.expect(f"load {order.stage}")
    assert _answer(mailbox, msgspec.msgpack.decode(said, type=FromWorker))
    error = reply.exception()
    assert isinstance(error, StageFailedError)
    assert error.retryable is is_retryable


def test_lines_of_a_load_name_the_jobs_that_it_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = LoaderThread("inproc://nobody", "cpu:0#0", FailingShelf(lambda: {}["no"]))
    stage = StageKey(MODEL, StageKind.DIFFUSE)
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    fresh = structlog.get_logger()  # another test may have let theirs be bound for good
    monkeypatch.setattr("engine.stages.loader_thread.log", fresh)
    try:
        loader._load(LoadStage(stage, "folder", "flux", ids={"job_id": "job_1"}))
        loader._load(LoadStage(stage, "folder", "flux"))
    finally:
        structlog.configure(**before)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line.get("job_id")) for line in lines] == [
        ("stage_load_failed", "job_1"),
        ("stage_load_failed", None),
    ]


def test_the_loader_of_a_worker_settles_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class SettledError(Exception):
        pass

    def settle(device: torch.device) -> None:
        raise SettledError(str(device))

    monkeypatch.setattr(torch.cuda, "set_device", settle)
    loader = LoaderThread("inproc://nobody", "cuda:1#0", StageShelf(torch.device("cuda:1")))
    for thread in (loader.serve, lambda: loader.load_all(threads=1)):
        with pytest.raises(SettledError, match="cuda:1"):
            thread()


def test_numbers_that_are_not_finite_may_be_tried_again_and_say_how_many(tmp_path: Path) -> None:
    latent = torch.ones(2, 8)
    latent[0, 3], latent[1, 1] = float("nan"), float("-inf")
    report = outcome(tmp_path, lambda: expect_finite(latent, "the latent"))
    assert (report.retryable, report.not_finite) == (True, True)
    assert report.error == "2 of 16 numbers of the latent are NaN or infinite."


def test_a_bug_is_not_tried_again(tmp_path: Path) -> None:
    report = outcome(tmp_path, lambda: {}["no"])
    assert (report.retryable, report.not_finite) == (False, False)


def test_a_gpu_that_a_fault_has_broken_ends_its_worker_instead_of_failing_every_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_device: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("reset_peak_memory_stats", "memory_allocated", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_device: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_device: None)
    assert not outcome(tmp_path, lambda: {}["no"], "cuda:0").retryable
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        outcome(tmp_path, lambda: {}["no"], "cuda:0")


def test_whole_numbers_and_masks_are_always_finite() -> None:
    expect_finite(torch.ones(3, dtype=torch.bool), "a mask")
    with pytest.raises(NotFiniteError):
        expect_finite(torch.full((1,), float("inf"), dtype=torch.bfloat16), "an embedding")

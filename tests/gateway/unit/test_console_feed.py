"""The console is told everything, in order and once, and nobody who is slow holds others up."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from engine.types import (
    Assignment,
    ClusterView,
    DeviceId,
    DispatchPlan,
    Held,
    NodeId,
    PlanId,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from gateway import console
from gateway.console import ConsoleFeed
from gateway.errors import MissingError
from schedulers.sim.events import ClusterDevice, ClusterEvent, SwitchEvent
from tests.support.builders import MODEL, a_request

CLUSTER = ClusterEvent((ClusterDevice(DeviceId("cpu:0"), "local", 100),))


def task_of(request: str = "r1") -> StageTask:
    return StageTask(
        id=TaskId(f"{request}/encode"),
        request=a_request(request),
        node=NodeId("encode"),
        stage=StageKey(MODEL, StageKind.ENCODE),
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=0.0,
    )


def assignment_of(task: StageTask, why: str) -> Assignment:
    team = (DeviceId("cpu:0"),)
    return Assignment(task=task, team=team, expected_s=1.0, activation_bytes=0, why=why)


def a_feed() -> ConsoleFeed:
    feed = ConsoleFeed()
    feed.follow(lambda: None)
    return feed


def view_at(now_s: float) -> ClusterView:
    return ClusterView(configured=(), devices=(), weight_bytes={}, now_s=now_s)


async def read(feed: ConsoleFeed, count: int) -> list[tuple[str, dict]]:
    """Return the first messages of a new page."""
    found: list[tuple[str, dict]] = []
    async with aclosing(feed.stream()) as messages:
        async for message in messages:
            event, data = message.decode().strip().split("\n")
            found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
            if len(found) == count:
                break
    return found


async def test_who_comes_later_hears_of_the_cluster_and_of_what_happened() -> None:
    feed = a_feed()
    feed.note(CLUSTER)
    feed.note(SwitchEvent(1.5, 2))
    start, cluster, switch = await read(feed, 3)
    assert start == ("start", {})
    assert cluster[1]["kind"] == "cluster"
    assert switch == ("fact", {"kind": "switch", "t": 1.5, "version": 2})


async def test_nothing_is_lost_between_what_was_and_what_comes() -> None:
    feed = a_feed()
    feed.note(SwitchEvent(0.0, 1))
    versions: list[int] = []
    async with aclosing(feed.stream()) as messages:
        async for message in messages:
            if message.startswith(b"event: fact"):
                versions.append(json.loads(message.split(b"data: ")[1])["version"])
            if len(versions) == 5:
                break
            feed.note(SwitchEvent(float(len(versions)), 2 + len(versions)))
    assert versions == sorted(set(versions))


async def test_the_cluster_is_told_however_much_has_happened() -> None:
    feed = a_feed()
    feed._history = console.deque(maxlen=3)
    feed.note(CLUSTER)
    for version in range(10):
        feed.note(SwitchEvent(float(version), version))
    kinds = [data.get("kind") for _event, data in await read(feed, 5)]
    assert kinds == [None, "cluster", "switch", "switch", "switch"]


async def test_a_page_that_does_not_read_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BACKLOG", 4)
    feed = a_feed()
    async with aclosing(feed.stream()) as messages:
        await anext(messages)
        for version in range(10):
            feed.note(SwitchEvent(float(version), version))
        assert not feed._listeners
        rest = [message async for message in messages]
    assert len(rest) == 3


async def test_a_server_that_stops_ends_every_stream() -> None:
    feed = a_feed()
    async with aclosing(feed.stream()) as messages:
        assert (await anext(messages)).startswith(b"event: start")
        feed.note(SwitchEvent(1.0, 1))
        feed.close()
        assert [message async for message in messages] == []


async def test_a_page_that_left_is_forgotten() -> None:
    feed = a_feed()
    await read(feed, 1)
    assert not feed._listeners


def test_a_reason_that_repeats_is_remembered_once() -> None:
    feed, task = a_feed(), task_of()
    waits = DispatchPlan(id=PlanId(1), held=(Held(task, "no device is free"),))
    starts = DispatchPlan(id=PlanId(2), assignments=(assignment_of(task, why="it is urgent"),))
    for now_s, plan in enumerate((waits, waits, starts)):
        feed.decided(plan, view_at(now_s))
    found = [(d.at_s, d.why) for d in feed.decisions(task.request.id)]
    assert found == [(0, "no device is free"), (2, "on cpu:0: it is urgent")]


def test_the_second_output_of_a_request_has_its_decisions() -> None:
    feed, task = a_feed(), task_of()
    feed.decided(DispatchPlan(id=PlanId(1), held=(Held(task, "waits"),)), view_at(0))
    assert feed.decisions(f"{task.request.id}/1")
    assert feed.decisions("another") == ()


def test_requests_beyond_the_last_thousands_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "REMEMBERED_REQUESTS", 2)
    feed = a_feed()
    for number in range(4):
        task = task_of(f"r{number}")
        feed.decided(DispatchPlan(id=PlanId(1), held=(Held(task, "waits"),)), view_at(0))
    remembered = [number for number in range(4) if feed.decisions(f"r{number}")]
    assert remembered == [2, 3]


def test_without_an_engine_the_page_is_told_where_one_is() -> None:
    with pytest.raises(MissingError, match="runs no engine"):
        ConsoleFeed().stream()

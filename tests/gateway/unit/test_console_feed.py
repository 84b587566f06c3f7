"""The console is told everything, in order and once, and nobody who is slow holds others up."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from engine.types import DeviceId
from gateway import console
from gateway.console import ConsoleFeed
from gateway.errors import MissingError
from schedulers.sim.events import ClusterDevice, ClusterEvent, SwitchEvent

CLUSTER = ClusterEvent((ClusterDevice(DeviceId("cpu:0"), "local", 100),))


def a_feed() -> ConsoleFeed:
    feed = ConsoleFeed()
    feed.follow(lambda: None)
    return feed


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
    assert switch[0] == "fact"
    assert (switch[1]["kind"], switch[1]["t"], switch[1]["version"]) == ("switch", 1.5, 2)


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


def test_without_an_engine_the_page_is_told_where_one_is() -> None:
    with pytest.raises(MissingError, match="runs no engine"):
        ConsoleFeed().stream()

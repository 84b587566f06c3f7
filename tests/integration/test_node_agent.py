"""A node agent and its server in one process: what they say to each other, and who is let in.

The agent's executor is the fake one, but its hand-offs are real files.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from engine.errors import HandoffLostError, RequestCancelledError, WorkerLostError
from engine.executors import agent as agents
from engine.executors import node_line, remote
from engine.executors.agent import Agent
from engine.executors.fake import FakeExecutor
from engine.executors.node_line import NodeAwayError, inspect
from engine.executors.remote import RemoteExecutor
from engine.executors.spanning import SpanningExecutor
from engine.handoff import HandoffStore, PrivateFolder
from engine.handoff_client import HandoffClient
from engine.messages import Saving, StageReport
from engine.node_keys import NodeSecret
from engine.node_wire import Fits, Hello, Inspect, Terms
from engine.types import (
    Assignment,
    DeviceId,
    DeviceInfo,
    HandoffRef,
    ModelId,
    NodeId,
    SavedLatent,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from tests.support.builders import MIB, MODEL, a_request
from tests.support.server import free_port

TERMS = Terms("cpu", {MODEL: "abc"}, {"torch": "2.13"})
TOKEN, SECRET = "between-nodes", NodeSecret("s" * 32)
STEP_S = 0.02


class LoopClock:
    """Which the fake executor's timers go by."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


def content_of(ref: HandoffRef) -> bytes:
    return Path(ref.path).read_bytes()


class FileExecutor(FakeExecutor):
    """The agent's: its hand-offs are files, and it remembers what launches began with."""

    def __init__(self, hello: Hello, folder: PrivateFolder) -> None:
        infos = [DeviceInfo(DeviceId(f"{hello.name}/cpu:0"), hello.name, 1024 * MIB)]
        super().__init__(
            infos,
            clock=LoopClock(),
            duration_s=lambda a: STEP_S * max(1, a.task.steps_left),
            load_s=lambda _stage, _from_peer: STEP_S,
            saving=hello.saving,
        )
        self._folder = folder
        self.handoffs = HandoffStore(folder.path / "handoff", 1 << 20, folder.path)
        self.began_with: list[bytes] = []
        self.is_closed = False

    def _hand_off(self, name: TaskId) -> HandoffRef:
        return self.restore(name, NodeId(name), f"made by {name}".encode())

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        return self.handoffs.restore(task, node, content)

    def release(self, ref: HandoffRef) -> None:
        self.handoffs.release(ref)

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        for ref in remote.inputs_of(assignment):
            self.began_with.append(content_of(ref))
        return await super().run(assignment)

    async def close(self) -> None:
        await super().close()
        self.handoffs.close()
        self._folder.close()
        self.is_closed = True


class Listener:
    """What the server's core would hear."""

    def __init__(self) -> None:
        self.up: set[DeviceId] = set()
        self.lost: list[str] = []
        self.saved: list[SavedLatent] = []
        self.steps: list[int] = []

    def device_ready(self, info: DeviceInfo) -> None:
        self.up.add(info.id)

    def device_lost(self, device: DeviceId, reason: str) -> None:
        self.up.discard(device)
        self.lost.append(reason)

    def executor_failed(self, reason: str) -> None:
        raise AssertionError(reason)

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        del launch, task
        self.saved.append(saved)

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        del task, steps
        self.steps.append(step)

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        raise AssertionError((task, index, latent))


class Pair:
    """An agent, and the server that it serves."""

    def __init__(self, tmp_path: Path, secret: NodeSecret | None) -> None:
        self.tmp_path, self.secret = tmp_path, secret
        self.port, self.handoff_port = free_port(), free_port()
        self.name = f"127.0.0.1:{self.port}"
        self.made: list[FileExecutor] = []
        self.agent = Agent(TERMS, self._make, secret)  # type: ignore[arg-type]
        self.serving: asyncio.Task[None] | None = None
        self.servers: list[tuple[SpanningExecutor, RemoteExecutor]] = []
        self.home = HandoffStore(tmp_path / "home", 1 << 20, tmp_path)

    def _make(self, hello: Hello) -> FileExecutor:
        self.made.append(FileExecutor(hello, PrivateFolder(self.tmp_path)))
        return self.made[-1]

    async def start(self) -> None:
        self.agent.listen("127.0.0.1", self.port, self.handoff_port)
        self.resume()

    async def pause(self) -> None:
        assert self.serving is not None
        self.serving.cancel()
        await asyncio.gather(self.serving, return_exceptions=True)

    def resume(self) -> None:
        self.serving = asyncio.create_task(self.agent.serve())

    async def stop(self) -> None:
        await self.pause()
        await self.agent.close()

    async def server(self) -> tuple[SpanningExecutor, Listener]:
        hello = Hello(TERMS, self.name, TOKEN, Saving(1, 0.0), 1)
        node = RemoteExecutor(hello, self.secret, self.home)
        here = FakeExecutor([], clock=LoopClock(), duration_s=lambda _a: 0.0)
        here.release = self.home.release  # type: ignore[method-assign]
        server, listener = SpanningExecutor(here, [node]), Listener()
        self.servers.append((server, node))
        await server.start(listener)
        return server, listener


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def a_pair(tmp_path: Path, secret: NodeSecret | None = None) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path, secret)
    await pair.start()
    try:
        yield pair
    finally:
        for server, _node in pair.servers:
            await server.close()
        await pair.stop()
        assert all(made.is_closed for made in pair.made)


def a_task(kind: StageKind, steps: int = 4, **changes: Any) -> StageTask:
    values: dict[str, Any] = {
        "id": TaskId(f"r/{kind}/1"),
        "request": a_request("r", steps=steps),
        "node": NodeId(kind.value),
        "stage": StageKey(MODEL, kind),
        "image_index": 0,
        "inputs": (),
        "sequence": 0,
        "attempt": 1,
        "ready_s": 0.0,
    }
    return StageTask(**(values | changes))


def a_launch(pair: Pair, task: StageTask) -> Assignment:
    team = (DeviceId(f"{pair.name}/cpu:0"),)
    return Assignment(task=task, team=team, expected_s=1.0, activation_bytes=1, why="")


@pytest.mark.parametrize("secret", [None, SECRET])
async def test_launches_run_there_and_tensors_come_and_go(
    tmp_path: Path, secret: NodeSecret | None
) -> None:
    async with a_pair(tmp_path, secret) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        device, stage = DeviceId(f"{pair.name}/cpu:0"), StageKey(MODEL, StageKind.ENCODE)
        assert server.devices == (device,)
        assert await server.load(device, stage) == STEP_S
        [encoded] = await server.run(a_launch(pair, a_task(StageKind.ENCODE)))
        assert encoded.output is not None
        fetched = await asyncio.to_thread(HandoffClient(TOKEN).fetch, encoded.output)
        assert fetched == b"made by r/encode/1"
        source = pair.home.restore(TaskId("source"), NodeId("source"), b"from here")
        diffuse = a_task(StageKind.DIFFUSE, inputs=(encoded.output, source))
        [diffused] = await server.run(a_launch(pair, diffuse))
        assert pair.made[0].began_with == [b"made by r/encode/1", b"from here"]
        assert diffused.output is not None
        for ref in (encoded.output, diffused.output, source, *(s.ref for s in listener.saved)):
            server.release(ref)
        await server.unload(device, stage)
        assert pair.made[0].handoffs.used_bytes == pair.home.used_bytes == 0
        assert server.notices() == ()


async def test_what_a_diffuse_has_saved_comes_home_and_so_does_a_paused_one(
    tmp_path: Path,
) -> None:
    async with a_pair(tmp_path) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        launch = a_launch(pair, a_task(StageKind.DIFFUSE, steps=50))
        running = asyncio.create_task(server.run(launch))
        await until(lambda: len(listener.saved) >= 2)
        server.pause(launch)
        [report] = await running
        assert report.paused
        assert report.output is not None
        assert [saved.step for saved in listener.saved] == list(range(1, report.steps_done + 1))
        for ref in (report.output, *(saved.ref for saved in listener.saved)):
            assert ref.host == ""
            assert b"made by r/diffuse/1" in content_of(ref)
        assert pair.made[0].handoffs.used_bytes == 0


async def test_a_latent_that_is_slow_to_come_home_stops_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pair(tmp_path) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        began, may_end, restore = Event(), Event(), pair.home.restore

        def slow(task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
            began.set()
            assert may_end.wait(20)
            return restore(task, node, content)

        monkeypatch.setattr(pair.home, "restore", slow)
        running = asyncio.create_task(server.run(a_launch(pair, a_task(StageKind.DIFFUSE, 50))))
        await until(began.is_set)  # which this loop could not see if it were the one that waits
        closing = asyncio.create_task(server.close())
        for _ in range(20):  # until whoever brings it home has heard of that
            await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(WorkerLostError):
            await running
        await closing
        assert pair.home.used_bytes == 0


async def test_a_load_that_nobody_wants_any_more_is_stopped_there(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        pair.made[0]._load_s = lambda _stage, _from_peer: 3600.0
        device, stage = DeviceId(f"{pair.name}/cpu:0"), StageKey(MODEL, StageKind.ENCODE)
        loading = asyncio.create_task(server.load(device, stage))
        await until(lambda: pair.made[0].busy)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert not pair.made[0].busy


async def test_orders_that_arrive_together_are_carried_out_one_after_another(
    tmp_path: Path,
) -> None:
    async with a_pair(tmp_path) as pair, asyncio.timeout(20):
        server, listener = await pair.server()
        await until(lambda: listener.up)
        await pair.pause()
        device, stage = DeviceId(f"{pair.name}/cpu:0"), StageKey(MODEL, StageKind.ENCODE)
        loading = asyncio.create_task(server.load(device, stage))
        launch = a_launch(pair, a_task(StageKind.DIFFUSE, 200))
        running = asyncio.create_task(server.run(launch))
        await asyncio.sleep(0.05)
        loading.cancel()
        server.cancel(launch)
        await asyncio.sleep(0.05)
        pair.resume()
        with pytest.raises(asyncio.CancelledError):
            await loading
        with pytest.raises(RequestCancelledError):
            await running


async def test_a_node_that_is_gone_loses_its_devices_and_tensors_and_is_found_again(
    tmp_path: Path,
) -> None:
    async with a_pair(tmp_path) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        [encoded] = await server.run(a_launch(pair, a_task(StageKind.ENCODE)))
        assert encoded.output is not None
        running = asyncio.create_task(server.run(a_launch(pair, a_task(StageKind.DIFFUSE, 200))))
        await until(lambda: listener.steps)
        await pair.stop()
        with pytest.raises(WorkerLostError, match="has let this server go: it stops") as error:
            await running
        assert error.value.began
        assert listener.up == set()
        assert server.notices() == (listener.lost[0],)
        again = a_task(StageKind.DIFFUSE, inputs=(encoded.output,))
        with pytest.raises(HandoffLostError, match="went with the node") as lost:
            await server.run(a_launch(pair, again))
        assert lost.value.lost == (encoded.output,)
        server.release(encoded.output)  # harmless
        pair.agent = Agent(TERMS, pair._make, None)  # type: ignore[arg-type]
        await pair.start()
        await until(lambda: listener.up)
        assert len(pair.made) == 2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both sides beat and lose patience soon."""
    for module in (agents, node_line):
        monkeypatch.setattr(module, "BEAT_S", 0.05)
        monkeypatch.setattr(module, "SILENCE_S", 0.5)
        monkeypatch.setattr(module, "LONG_SLEEP_S", 5.0)


@pytest.mark.usefixtures("quick")
async def test_a_node_whose_server_was_killed_frees_everything_for_the_next_one(
    tmp_path: Path,
) -> None:
    async with a_pair(tmp_path) as pair:
        server, listener = await pair.server()
        await until(lambda: listener.up)
        await server.run(a_launch(pair, a_task(StageKind.ENCODE)))
        [(_server, node)] = pair.servers
        assert node._line is not None
        node._line._socket.close(linger=0)  # as if the process had gone
        assert node._connecting is not None
        node._connecting.cancel()
        await until(lambda: pair.made[0].is_closed)
        _another, heard = await pair.server()
        await until(lambda: heard.up)


@pytest.mark.usefixtures("quick")
async def test_a_server_or_a_node_that_falls_silent_is_taken_for_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_pair(tmp_path) as pair:
        _server, listener = await pair.server()
        await until(lambda: listener.up)
        monkeypatch.setattr(Agent, "_say", lambda *_args: True)
        await until(lambda: any("no sign of life" in reason for reason in listener.lost))


async def test_a_node_serves_one_server_at_a_time(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as pair:
        first, listener = await pair.server()
        await until(lambda: listener.up)
        second, heard = await pair.server()
        await until(lambda: "serves another server" in second.notices()[0])
        await first.close()
        await until(lambda: heard.up)


async def test_who_has_no_secret_or_another_is_told_so(tmp_path: Path) -> None:
    async with a_pair(tmp_path, SECRET) as pair:
        await inspect(pair.name, SECRET, Inspect(TERMS))
        for secret in (None, NodeSecret("t" * 32)):
            with pytest.raises(NodeAwayError, match="TRIDENT_NODE_TOKEN") as error:
                await inspect(pair.name, secret, Inspect(TERMS))
            assert error.value.for_good


async def test_a_node_that_hangs_is_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_line, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(NodeAwayError, match="may hang") as error:
            await inspect(address, SECRET, Inspect(TERMS))
    assert not error.value.for_good


@pytest.mark.parametrize("answer", [b"hello", msgspec.msgpack.encode(Fits())])
async def test_what_answers_but_is_no_node_is_a_node_that_is_away(
    tmp_path: Path, answer: bytes
) -> None:
    pair = Pair(tmp_path, None)
    context = zmq.asyncio.Context()
    with context.socket(zmq.ROUTER) as stranger:
        stranger.bind(f"tcp://{pair.name}")
        server, listener = await pair.server()
        identity, _hello = await stranger.recv_multipart()
        await stranger.send_multipart([identity, answer])
        await until(lambda: "version" in server.notices()[0])
        await stranger.recv_multipart()  # it is asked again
        assert listener.lost == []
        await server.close()
        await pair.agent.close()
    context.term()


async def test_a_node_that_is_not_there_is_said_to_be_out_of_reach() -> None:
    with pytest.raises(NodeAwayError, match="cannot be reached") as error:
        await inspect(f"127.0.0.1:{free_port()}", None, Inspect(TERMS))
    assert not error.value.for_good


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models": {MODEL: "xyz"}}, "another version of model tiny"),
        ({"models": {ModelId("other"): "abc"}}, "no model other"),
        ({"versions": {"torch": "2.12"}}, "has torch 2.13, the server 2.12"),
        ({"device_kind": "cuda"}, "the server wants cuda"),
        ({"protocol": 99}, "does not understand"),
    ],
)
async def test_a_node_refuses_who_has_something_else_and_says_what(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    async with a_pair(tmp_path) as pair:
        other = msgspec.structs.replace(TERMS, **changes)
        with pytest.raises(NodeAwayError, match=sentence) as error:
            await inspect(pair.name, None, Inspect(other))
        assert error.value.for_good
        assert pair.made == []

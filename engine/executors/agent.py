"""A node agent: lends the devices of this machine to a server on another one.

It listens, and serves one server at a time with an ordinary executor of its own, made when the
server says hello and closed when it is gone, with all that it held. So nothing is left of one server
when the next one comes, and nothing runs while there is none. No torch, no policy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import structlog
import zmq
import zmq.asyncio
from structlog.contextvars import bound_contextvars

from engine.background import Background
from engine.errors import EngineError, RequestCancelledError, StageFailedError
from engine.executors.node_line import sent_at_once
from engine.executors.remote import with_inputs
from engine.handoff_server import HandoffServer
from engine.node_keys import Doorman, NodeSecret
from engine.node_wire import (
    BEAT_S,
    LARGEST_BYTES,
    LONG_SLEEP_S,
    MOST_WAITING,
    SILENCE_S,
    Beat,
    Bye,
    Cancel,
    Done,
    Down,
    Drop,
    Fits,
    Free,
    FromNode,
    Hello,
    Inspect,
    Load,
    Pause,
    Progressed,
    Refused,
    Run,
    Saved,
    Shown,
    Stop,
    Terms,
    ToNode,
    Unload,
    Up,
    Welcome,
    told,
)
from engine.types import (
    DeviceId,
    DeviceInfo,
    HandoffRef,
    SavedLatent,
    StageKey,
    TaskId,
)

if TYPE_CHECKING:
    from engine.executors.local import LocalExecutor

Say: TypeAlias = Callable[[FromNode, Sequence[bytes]], bool]  # whether it was taken
Make: TypeAlias = Callable[[Hello], "LocalExecutor"]
_LINGER_MS = 500
_FOR_EVER = float("inf")  # hand-offs are lent until the server frees them or is gone
log = structlog.get_logger(__name__)


class Agent:
    """Serves one server after another.

    Args:
        terms: what this node has, to be compared with what a server has.
        make: makes the executor that serves a server.
    """

    def __init__(self, terms: Terms, make: Make, secret: NodeSecret | None) -> None:
        """Listen to nobody yet."""
        self._terms, self._make = terms, make
        self._context = zmq.asyncio.Context()
        self._doorman = None if secret is None else Doorman(self._context, secret)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # says who is gone
        self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_BYTES)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.set_hwm(MOST_WAITING)
        if secret is not None:
            secret.protect_node(self._socket)
        self._decoder = msgspec.msgpack.Decoder(ToNode)
        self._session: Session | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._host, self._handoff_port = "", 0

    def listen(self, host: str, port: int, handoff_port: int) -> None:
        """Let servers connect, on the running loop; raises OSError if that cannot be.

        libzmq takes numbers only, so a name is looked up here.
        """
        self._host, self._handoff_port = host, handoff_port
        if self._doorman is not None:
            self._doorman.start()
        number = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
        place = f"[{number}]:{port}" if ":" in number else f"{number}:{port}"
        try:
            self._socket.bind(f"tcp://{place}")
        except zmq.ZMQError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0)) from error

    async def serve(self) -> None:
        """Serve until cancelled."""
        while True:
            identity, payload, *contents = await self._socket.recv_multipart()
            await self._hear(identity, payload, contents)
            await asyncio.sleep(0)  # a call begins before what follows may stop or cancel it

    async def close(self) -> None:
        """Let a server go, and listen no more."""
        await self._part("it stops.")
        if self._doorman is not None:
            self._doorman.stop()
        self._socket.close(linger=_LINGER_MS)
        await asyncio.to_thread(self._context.term)

    async def _hear(self, identity: bytes, payload: bytes, contents: Sequence[bytes]) -> None:
        try:
            said = self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            reason = f"it does not understand us; both need one version of TridentServe: {error}."
            self._say(identity, Refused(reason, for_good=True))
            return
        session = self._session
        if session is not None and identity == session.identity:
            if isinstance(said, Bye):
                await self._part(said.reason)
            else:
                session.take(said, contents)
        elif isinstance(said, Hello | Inspect):
            await self._greet(identity, said)

    async def _greet(self, identity: bytes, said: Hello | Inspect) -> None:
        """Serve a server if there is no other and it has what we have."""
        if (why := why_not(said.terms, self._terms)) is not None:
            self._say(identity, Refused(why, for_good=True))
        elif isinstance(said, Inspect):
            self._say(identity, Fits())
        elif self._session is not None and self._say(self._session.identity, Beat()):
            self._say(identity, Refused("it serves another server.", for_good=False))
        else:
            await self._part("another server has come.")
            await self._begin(identity, said)

    async def _begin(self, identity: bytes, hello: Hello) -> None:
        def say(said: FromNode, contents: Sequence[bytes]) -> bool:
            return self._say(identity, said, contents)

        log.info("server_came", name=hello.name)
        try:
            session = Session(identity, hello, self._make(hello), say)
        except OSError as error:
            self._say(identity, Refused(f"it cannot begin: {error}.", for_good=False))
            return
        self._session = session
        try:
            port = await session.open(self._host, self._handoff_port)
        except OSError as error:
            reason = f"it cannot serve tensors on port {self._handoff_port}: {error}."
            self._say(identity, Refused(reason, for_good=False))
            await self._part(reason)
            return
        self._say(identity, Welcome(session.devices, port))
        await session.start()
        self._watching = asyncio.create_task(self._watch(session))

    async def _watch(self, session: Session) -> None:
        """Show the server that we live; let it go when it does not."""
        while True:
            slept_s = -time.monotonic()
            await asyncio.sleep(BEAT_S)
            slept_s += time.monotonic()
            if slept_s > LONG_SLEEP_S:  # it was us who did not listen
                session.heard_s = time.monotonic()
            silent_s = time.monotonic() - session.heard_s
            reaches = self._say(session.identity, Beat())
            if not reaches or silent_s > SILENCE_S or session.broke:
                self._watching = None  # or it would cancel this task
                await self._part(session.broke or "the server is gone.")
                return

    async def _part(self, reason: str) -> None:
        """Be done with a server: stop what runs for it, and free what it had here."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        session, self._session = self._session, None
        if session is not None:
            log.info("server_left", name=session.name, reason=reason)
            self._say(session.identity, Bye(reason))
            self._ending = asyncio.ensure_future(session.close())
        if self._ending is not None:
            await asyncio.shield(self._ending)  # whoever is cancelled meanwhile

    def _say(self, identity: bytes, said: FromNode, contents: Sequence[bytes] = ()) -> bool:
        """Say something to a server; False if it is gone or takes nothing any more."""
        frames = [identity, msgspec.msgpack.encode(said), *contents]
        return sent_at_once(self._socket, frames)


class Session:
    """What one server has of this node, as its executor's listener.

    Attributes:
        identity: of its connection.
        heard_s: when it last said something.
        broke: why the executor works no more, if it broke.
    """

    def __init__(self, identity: bytes, hello: Hello, executor: LocalExecutor, say: Say) -> None:
        """Start nothing yet."""
        self.identity, self.name, self.heard_s = identity, hello.name, time.monotonic()
        self.broke = ""
        self._executor, self._tell = executor, say
        self._server = HandoffServer(
            executor.handoffs, hello.handoff_token, lease_s=_FOR_EVER, now_s=time.monotonic
        )
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._background = Background(lambda error: self.executor_failed(repr(error)))
        self._is_over = False

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """All of the node."""
        return self._executor.devices

    async def open(self, host: str, port: int) -> int:
        """Serve hand-offs; return on which port."""
        await self._server.start(host, port)
        return self._server.port

    async def start(self) -> None:
        """Start the workers."""
        await self._executor.start(self)

    def _say(self, said: FromNode, contents: Sequence[bytes] = ()) -> None:
        if not self._is_over and not self._tell(said, contents):
            self.broke = self.broke or "the server is gone, or takes no words any more."

    def take(self, said: ToNode, contents: Sequence[bytes]) -> None:
        """Do what the server wants; calls are begun in the order in which they come."""
        self.heard_s = time.monotonic()
        match said:
            case Load(call, device, stage, ids):
                self._begin(call, self._load(call, device, stage, ids))
            case Unload(call, device, stage):
                self._begin(call, self._unload(call, device, stage))
            case Run(call):
                self._begin(call, self._run(said, contents))
            case Stop(call):
                if (task := self._calls.get(call)) is not None:
                    task.cancel()
            case Pause(assignment):
                self._executor.pause(assignment)
            case Cancel(assignment):
                self._executor.cancel(assignment)
            case Drop(assignment, task):
                self._executor.drop(assignment, task)
            case Free(ref):
                self._server.free(ref)

    def _begin(self, call: int, work: Coroutine[Any, Any, tuple[Done, Sequence[bytes]]]) -> None:
        self._calls[call] = self._background.spawn(self._answer(call, work))

    async def _answer(
        self, call: int, work: Coroutine[Any, Any, tuple[Done, Sequence[bytes]]]
    ) -> None:
        """Carry out a call and tell the server what came of it."""
        try:
            self._say(*await work)
        except EngineError as error:
            self._say(told(call, error))
        except asyncio.CancelledError:
            self._say(told(call, RequestCancelledError("The call was stopped.")))
            raise
        finally:
            del self._calls[call]

    async def _load(
        self, call: int, device: DeviceId, stage: StageKey, ids: Mapping[str, str]
    ) -> tuple[Done, Sequence[bytes]]:
        with bound_contextvars(**ids):
            return Done(call, load_s=await self._executor.load(device, stage)), ()

    async def _unload(
        self, call: int, device: DeviceId, stage: StageKey
    ) -> tuple[Done, Sequence[bytes]]:
        await self._executor.unload(device, stage)
        return Done(call), ()

    async def _run(self, order: Run, contents: Sequence[bytes]) -> tuple[Done, Sequence[bytes]]:
        brought = dict[HandoffRef, HandoffRef]()
        try:
            self._unpack(order, contents, brought)
            launch = with_inputs(order.assignment, lambda ref: brought.get(ref, ref))
            reports = await self._executor.run(launch)
        finally:
            for ref in brought.values():
                self._executor.release(ref)
        paused = [self._taken(r.output) for r in reports if r.paused and r.output is not None]
        for report in reports:
            if report.output is not None and not report.paused:
                self._server.lend(report.output)
        return Done(order.call, reports), paused

    def _unpack(
        self, order: Run, contents: Sequence[bytes], brought: dict[HandoffRef, HandoffRef]
    ) -> None:
        """Lay down what has travelled with an order."""
        for number, (ref, content) in enumerate(zip(order.carried, contents, strict=True)):
            name = TaskId(f"{order.assignment.task.id}/carried-{number}")
            try:
                brought[ref] = self._executor.restore(name, ref.node, content)
            except OSError as error:
                message = f"There is no room for what {order.assignment.task.id} needs: {error}."
                raise StageFailedError(message, retryable=True) from error

    def _taken(self, ref: HandoffRef) -> bytes:
        """Return a hand-off that goes to the server, and keep it here no more."""
        content = Path(ref.path).read_bytes()
        self._executor.release(ref)
        return content

    def device_ready(self, info: DeviceInfo) -> None:
        """Pass it on."""
        self._say(Up(info))

    def device_lost(self, device: DeviceId, reason: str) -> None:
        """Pass it on."""
        self._say(Down(device, reason))

    def executor_failed(self, reason: str) -> None:
        """End this session soon: the server may come again."""
        log.critical("node_session_broke", reason=reason)
        self.broke = f"its executor broke: {reason}."

    def latent_saved(self, launch: TaskId, task: TaskId, saved: SavedLatent) -> None:
        """Send a saved latent home."""
        content = self._taken(saved.ref)
        self._say(Saved(launch, task, saved.ref.node, saved.step), [content])

    def task_progressed(self, task: TaskId, step: int, steps: int) -> None:
        """Pass it on."""
        self._say(Progressed(task, step, steps))

    def latent_shown(self, task: TaskId, index: int, latent: HandoffRef) -> None:
        """Lend a latent that is to be shown."""
        self._server.lend(latent)
        self._say(Shown(task, index, latent))

    async def close(self) -> None:
        """Stop everything and free everything."""
        self._is_over = True
        await self._server.close()
        await self._executor.close()  # what waits for a worker hears that it is gone
        await self._background.close()


def why_not(server: Terms, node: Terms) -> str | None:
    """Return why a node, called `it`, cannot serve a server, and what to do; None if it can."""
    if server.protocol != node.protocol:
        return "it has a version of TridentServe that does not understand this one."
    if server.device_kind != node.device_kind:
        return (
            f"it runs stages on {node.device_kind}, the server wants {server.device_kind}; use the same "
            "--device for both."
        )
    for package, version in server.versions.items():
        if node.versions.get(package, version) != version:
            other = node.versions[package]
            return f"it has {package} {other}, the server {version}; install the same on both."
    for model, identity in server.models.items():
        if model not in node.models:
            return f"it has no model {model}; give it the same folder with --model."
        if node.models[model] != identity:
            return (
                f"it has another version of model {model} ({node.models[model]}) than the server "
                f"({identity}); copy the server's folder there."
            )
    return None

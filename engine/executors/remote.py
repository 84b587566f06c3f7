"""The devices of another machine: what a `trident node` there runs, as part of an executor.

Orders go out in the order in which they were given. Hand-offs that lie here travel with the launch
that needs them; those of other nodes are fetched by the worker. What a diffuse there has saved comes
home at once, so that it outlives the node; other outputs stay there until they are needed.

A node that is gone takes everything with it: its devices are lost, its calls fail, its hand-offs are
no more. It is looked for again for as long as the executor lives, and its devices come up anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

import msgspec
import structlog
import zmq.asyncio

from engine.errors import (
    EngineError,
    HandoffLostError,
    LedgerError,
    StageFailedError,
    WorkerLostError,
)
from engine.executors.node_line import NodeAwayError, NodeLine
from engine.handoff import saved_of
from engine.node_keys import NodeSecret
from engine.node_wire import (
    Bye,
    Cancel,
    Done,
    Down,
    Drop,
    Failed,
    Free,
    FromNode,
    Hello,
    Load,
    Pause,
    Progressed,
    Run,
    Saved,
    Shown,
    Stop,
    ToNode,
    Unload,
    Up,
    Welcome,
    heard,
)
from engine.types import (
    Assignment,
    DeviceId,
    HandoffRef,
    NodeId,
    SavedLatent,
    StageKey,
    StageTask,
    TaskId,
)
from observability.logging import bound_ids

if TYPE_CHECKING:
    from engine.messages import StageReport
    from engine.ports import DeviceListener

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
log = structlog.get_logger(__name__)


class Home(Protocol):
    """Who keeps hand-offs on this machine."""

    def restore(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Make a hand-off; raises `OSError` if there is no room."""
        ...

    def release(self, ref: HandoffRef) -> None:
        """Free it."""
        ...


class _Waiting(NamedTuple):
    order: Load | Unload | Run
    reply: asyncio.Future[tuple[Done, Sequence[bytes]]]


class RemoteExecutor:
    """The node at `hello.name` (HOST:PORT).

    Args:
        hello: what is said to it on every connection.
        home: where what comes home becomes a hand-off; `restore` is called in threads.
    """

    def __init__(self, hello: Hello, secret: NodeSecret | None, home: Home) -> None:
        """Connect to nobody yet."""
        self.name, self._hello, self._secret = hello.name, hello, secret
        self._at_home = home
        self._context = zmq.asyncio.Context()
        self._line: NodeLine | None = None
        self._listener: DeviceListener | None = None
        self._why_away = f"Node {self.name} has not answered yet."
        self._devices: tuple[DeviceId, ...] = ()
        self._up: set[DeviceId] = set()
        self._handoff_host = ""
        self._alive: set[str] = set()
        self._numbers = count(1)
        self._calls: dict[int, _Waiting] = {}
        self._outbox: asyncio.Queue[ToNode] = asyncio.Queue()
        self._connecting: asyncio.Task[None] | None = None

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """Ids of its devices, once it was reached."""
        return self._devices

    @property
    def is_whole(self) -> bool:
        """Whether it was reached once, so that its devices are known."""
        return bool(self._devices)

    def holds(self, ref: HandoffRef) -> bool:
        """Whether a hand-off lies there."""
        return ref.host == self._handoff_host and ref.path in self._alive

    def notices(self) -> tuple[str, ...]:
        """Return why the node is not there, if it is not."""
        return () if self._line is not None else (self._why_away,)

    async def start(self, listener: DeviceListener) -> None:
        """Begin to look for the node."""
        self._listener = listener
        self._connecting = asyncio.create_task(self._stay_connected())
        self._connecting.add_done_callback(self._notice_end)

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("executor_crashed", exc_info=error)
            self._tell().executor_failed(repr(error))

    async def _stay_connected(self) -> None:
        """Connect and serve, again and again, with growing pauses while that does not last."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                line = NodeLine(self._context, self.name, self._secret)
            except NodeAwayError as error:
                self._note_away(str(error))
            else:
                pause_s = _FIRST_PAUSE_S if await self._use(line) else pause_s
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _use(self, line: NodeLine) -> bool:
        """Be served over a line until it is lost; return whether it ever was any good."""
        try:
            welcome = await line.ask(self._hello)
            assert isinstance(welcome, Welcome)
            self._joined(line, welcome)
            reason = await line.attend(self._hear, self._send_all(line))
        except NodeAwayError as error:
            self._note_away(str(error))
            return False
        finally:
            line.close()
        self._note_away(reason)
        self._left(reason)
        return True

    def _note_away(self, reason: str) -> None:
        if reason != self._why_away:
            log.warning("node_away", node=self.name, reason=reason)
        self._why_away = reason

    def _joined(self, line: NodeLine, welcome: Welcome) -> None:
        log.info("node_joined", node=self.name, devices=len(welcome.devices))
        self._devices, self._outbox = welcome.devices, asyncio.Queue()
        host = self.name.rpartition(":")[0]
        self._handoff_host, self._line = f"{host}:{welcome.handoff_port}", line

    def _left(self, reason: str) -> None:
        """Let everything go that was there, and say so."""
        lost, self._up = sorted(self._up), set()
        for device in lost:
            self._tell().device_lost(device, reason)
        self._let_go(reason)

    def _let_go(self, reason: str) -> None:
        self._line = None
        self._alive.clear()
        for number, (order, _reply) in list(self._calls.items()):
            self._fail(number, WorkerLostError(reason, began=isinstance(order, Run)))

    async def _send_all(self, line: NodeLine) -> NoReturn:
        """Send orders one after another; what travels with one is read meanwhile."""
        while True:
            order = await self._outbox.get()
            if not isinstance(order, Run) or not order.carried:
                line.send(order)
                continue
            try:
                contents = await asyncio.to_thread(_read, order.carried)
            except OSError as error:
                message = f"What {order.assignment.task.id} begins with is gone: {error}."
                self._fail(order.call, HandoffLostError(message, order.carried))
            else:
                line.send(order, contents)

    def _fail(self, call: int, error: EngineError) -> None:
        if (waiting := self._calls.get(call)) is not None and not waiting.reply.done():
            waiting.reply.set_exception(error)

    def _order(self, order: ToNode) -> None:
        """Give an order; a node that is away misses it."""
        if self._line is not None:
            self._outbox.put_nowait(order)

    async def _call(self, order: Load | Unload | Run) -> tuple[Done, Sequence[bytes]]:
        """Give an order and return its outcome; cancelling stops it, and ends when it has ended."""
        if self._line is None:
            raise WorkerLostError(self._why_away, began=False)
        reply: asyncio.Future[tuple[Done, Sequence[bytes]]]
        reply = asyncio.get_running_loop().create_future()
        self._calls[order.call] = _Waiting(order, reply)
        self._order(order)
        try:
            return await asyncio.shield(reply)
        except asyncio.CancelledError:
            self._order(Stop(order.call))
            with suppress(EngineError):
                done = await reply
                if isinstance(order, Load):  # too late to be stopped
                    await self.unload(order.device, order.stage)
                self._free_outputs(done[0])
            raise
        finally:
            self._calls.pop(order.call, None)

    def _free_outputs(self, done: Done) -> None:
        for report in done.reports:
            if report.output is not None and not report.paused:
                self.release(self._tagged(report.output))

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage's weights there."""
        order = Load(next(self._numbers), device, stage, bound_ids())
        done, _contents = await self._call(order)
        return done.load_s

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights there."""
        await self._call(Unload(next(self._numbers), device, stage))

    async def run(self, assignment: Assignment) -> tuple[StageReport, ...]:
        """Run a launch there; what it has paused comes home."""
        carried = tuple(dict.fromkeys(ref for ref in inputs_of(assignment) if not ref.host))
        order = Run(next(self._numbers), self._as_there(assignment), carried)
        done, contents = await self._call(order)
        paused = iter(contents)
        reports = [
            await self._home(report, next(paused))
            if report.paused and report.output is not None
            else self._from_there(report)
            for report in done.reports
        ]
        return tuple(reports)

    async def _home(self, report: StageReport, content: bytes) -> StageReport:
        assert report.output is not None
        try:
            ref = await self._restored(report.task, report.output.node, content)
        except OSError as error:
            message = f"Where {report.task} was paused could not be kept here: {error}."
            raise StageFailedError(message, retryable=True) from error
        return msgspec.structs.replace(report, output=ref)

    async def _restored(self, task: TaskId, node: NodeId, content: bytes) -> HandoffRef:
        """Make a hand-off here, beside the event loop; whoever is cancelled leaves none."""
        writing = asyncio.ensure_future(
            asyncio.to_thread(self._at_home.restore, task, node, content)
        )
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            with suppress(OSError, LedgerError):  # no room, or everything was freed meanwhile
                self._at_home.release(await writing)
            raise

    def _from_there(self, report: StageReport) -> StageReport:
        if report.output is None:
            return report
        return msgspec.structs.replace(report, output=self._tagged(report.output))

    def _tagged(self, ref: HandoffRef) -> HandoffRef:
        """Return a reference of the node's own as others know it."""
        return msgspec.structs.replace(ref, host=self._handoff_host)

    def _as_there(self, assignment: Assignment) -> Assignment:
        """Return an assignment as the node sees it: what lies there is its own."""

        def seen(ref: HandoffRef) -> HandoffRef:
            own = ref.host == self._handoff_host
            return msgspec.structs.replace(ref, host="") if own else ref

        return with_inputs(assignment, seen)

    def pause(self, assignment: Assignment) -> None:
        """Have a diffuse there stop at its next step boundary."""
        self._order(Pause(assignment))

    def cancel(self, assignment: Assignment) -> None:
        """Have a team there stop."""
        self._order(Cancel(assignment))

    def drop(self, assignment: Assignment, task: TaskId) -> None:
        """Have a team there go on without a task."""
        self._order(Drop(assignment, task))

    def release(self, ref: HandoffRef) -> None:
        """Free a hand-off there; nothing is to do if it went with the node."""
        if self.holds(ref):
            self._alive.remove(ref.path)
            self._order(Free(msgspec.structs.replace(ref, host="")))

    async def _hear(self, said: FromNode, contents: Sequence[bytes]) -> None:
        """Take what the node says to whom it concerns."""
        tell = self._tell()
        match said:
            case Done(call):
                self._settle(call, said, contents)
            case Failed(call):
                self._fail(call, heard(said))
            case Up(info):
                self._up.add(info.id)
                tell.device_ready(info)
            case Down(device, reason):
                self._up.discard(device)
                tell.device_lost(device, reason)
            case Saved(launch, task, node, step):
                try:
                    latent = await self._restored(saved_of(task, step), node, contents[0])
                except OSError as error:  # the diffuse goes on, and the save before it counts
                    log.warning("latent_not_brought_home", task=task, detail=str(error))
                else:
                    tell.latent_saved(launch, task, SavedLatent(step, latent))
            case Progressed(task, step, steps):
                tell.task_progressed(task, step, steps)
            case Shown(task, index, latent):
                tell.latent_shown(task, index, self._adopted(latent))

    def _settle(self, call: int, done: Done, contents: Sequence[bytes]) -> None:
        """Answer a call; what it has made lies there from now on."""
        for report in done.reports:
            if report.output is not None and not report.paused:
                self._adopted(report.output)
        if (waiting := self._calls.get(call)) is not None and not waiting.reply.done():
            waiting.reply.set_result((done, contents))

    def _adopted(self, ref: HandoffRef) -> HandoffRef:
        """Account for a hand-off of the node's; return it as others know it."""
        self._alive.add(ref.path)
        return self._tagged(ref)

    def _tell(self) -> DeviceListener:
        assert self._listener is not None  # nobody is connected to before start
        return self._listener

    async def close(self) -> None:
        """Let the node go; idempotent."""
        if self._connecting is not None:
            if self._line is not None:
                self._line.send(Bye("it stops."))
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            self._connecting = None
            self._let_go("The server stops.")
        await asyncio.to_thread(self._context.term)


def inputs_of(assignment: Assignment) -> tuple[HandoffRef, ...]:
    """Return all hand-offs that a launch begins with."""
    saved = (task.saved.ref for task in assignment.tasks if task.saved is not None)
    return (*(ref for task in assignment.tasks for ref in task.inputs), *saved)


def with_inputs(assignment: Assignment, seen: Callable[[HandoffRef], HandoffRef]) -> Assignment:
    """Return a launch with what it begins with replaced."""

    def of(task: StageTask) -> StageTask:
        saved = task.saved
        if saved is not None:
            saved = SavedLatent(saved.step, seen(saved.ref))
        return msgspec.structs.replace(task, inputs=tuple(map(seen, task.inputs)), saved=saved)

    task, *riders = map(of, assignment.tasks)
    return msgspec.structs.replace(assignment, task=task, riders=tuple(riders))


def _read(refs: Sequence[HandoffRef]) -> list[bytes]:
    return [Path(ref.path).read_bytes() for ref in refs]

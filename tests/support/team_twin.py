"""Workers that exist only on the virtual clock: the in-memory twin of a node's processes.

Each obeys its orders one after another, meets its team at every step and can be made to fail.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from enum import Enum

from engine.errors import (
    EngineError,
    RequestCancelledError,
    StageFailedError,
    TeamBrokenError,
    WorkerLostError,
)
from engine.messages import (
    BreakGroup,
    CancelTask,
    FromWorker,
    JoinGroup,
    LaunchDone,
    LeaveGroup,
    RunStage,
    Seat,
    ToWorker,
)
from engine.types import DeviceId, TaskId
from tests.support.builders import a_report

STEPS = 3  # of one second each
RESTART_S = 5.0


class Fate(Enum):
    """What becomes of one member of one launch, after its first step."""

    FINE = "fine"
    FAILS = "fails"
    DIES = "dies"
    DEAF = "deaf"  # goes on for an hour, whatever happens to its team


class TwinGroup:
    """Where members agree, round by round, until one is gone."""

    def __init__(self, size: int) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._size, self._rounds = size, Counter[int]()
        self._codes: dict[int, dict[int, int]] = defaultdict(dict)
        self._met: dict[int, asyncio.Future[int]] = {}

    async def agree(self, rank: int, code: int) -> int:
        number = self._rounds[rank]
        self._rounds[rank] += 1
        codes = self._codes[number]
        codes[rank] = code
        met = self._met.setdefault(number, asyncio.get_running_loop().create_future())
        if len(codes) == self._size:
            met.set_result(codes[0])
        await asyncio.wait({met, self.gone}, return_when=asyncio.FIRST_COMPLETED)
        if not met.done():
            message = "a peer is gone"
            raise TeamBrokenError(message)
        return met.result()

    def end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


class TwinNode:
    """A `Line` and a `Post` to workers that are tasks.

    Attributes:
        fate: of a member by launch number and device.
        obeyed: launch numbers that each device began, in its order.
        killed: devices that had to be killed.
    """

    def __init__(self, devices: Sequence[DeviceId], fate: Callable[[int, DeviceId], Fate]) -> None:
        self._devices, self.fate = devices, fate
        self.obeyed: dict[DeviceId, list[int]] = defaultdict(list)
        self.killed: list[DeviceId] = []
        self.came_up: Callable[[DeviceId], None] = lambda _device: None
        self.went_down: Callable[[DeviceId], None] = lambda _device: None
        self._groups: dict[str, TwinGroup] = {}
        self._queues: dict[DeviceId, deque[ToWorker]] = {}
        self._heard: dict[DeviceId, asyncio.Event] = {}
        self._cancelled: set[TaskId] = set()
        self._waiting: dict[DeviceId, dict[str, asyncio.Future[FromWorker]]] = {}
        self._tasks: dict[DeviceId, asyncio.Task[None]] = {}
        self._restarts: set[asyncio.Task[None]] = set()

    def start(self, device: DeviceId) -> None:
        self._queues[device], self._heard[device] = deque(), asyncio.Event()
        self._waiting[device] = {}
        self._tasks[device] = asyncio.create_task(self._serve(device))
        self.came_up(device)

    def is_up(self, device: DeviceId) -> bool:
        return device in self._queues

    def send(self, device: DeviceId, message: ToWorker) -> None:
        if not self.is_up(device):
            return
        if isinstance(message, CancelTask):
            self._cancelled.add(message.task)
        else:
            self._queues[device].append(message)
            self._heard[device].set()

    def interrupt(self, device: DeviceId, message: BreakGroup) -> None:
        if self.is_up(device):
            self._group(message.group, 1).end()

    def call(self, device: DeviceId, key: str, message: ToWorker) -> asyncio.Future[FromWorker]:
        assert self.is_up(device)
        reply: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        self._waiting[device][key] = reply
        self.send(device, message)
        return reply

    def kill(self, device: DeviceId) -> None:
        self.killed.append(device)
        self._die(device)

    def _die(self, device: DeviceId) -> None:
        task = self._tasks.pop(device)
        if task is not asyncio.current_task():
            task.cancel()
        for message in self._queues.pop(device):
            if isinstance(message, RunStage) and message.seat is not None:
                self._group(message.seat.group, message.seat.size).end()
        for reply in self._waiting.pop(device).values():
            if not reply.done():
                reply.set_exception(WorkerLostError(f"{device} died"))
        self.went_down(device)
        restart = asyncio.create_task(self._restart(device))
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)

    async def _restart(self, device: DeviceId) -> None:
        await asyncio.sleep(RESTART_S)
        self.start(device)

    def _group(self, name: str, size: int) -> TwinGroup:
        return self._groups.setdefault(name, TwinGroup(size))

    async def _serve(self, device: DeviceId) -> None:
        while True:
            while not self._queues[device]:
                self._heard[device].clear()
                await self._heard[device].wait()
            match self._queues[device].popleft():
                case JoinGroup(seat):
                    self._group(seat.group, seat.size)
                case LeaveGroup(group):
                    self._group(group, 1).end()
                case RunStage() as order:
                    await self._obey(device, order)

    async def _obey(self, device: DeviceId, order: RunStage) -> None:
        self.obeyed[device].append(order.launch)
        reply = self._waiting[device][order.id]
        try:
            reply.set_result(await self._run(device, order))
        except RequestCancelledError as error:
            reply.set_exception(error)
        except (StageFailedError, TeamBrokenError) as error:
            self._fail(order.seat, reply, error)
        except WorkerLostError:
            if order.seat is not None:
                self._group(order.seat.group, 1).end()
            self._die(device)

    def _fail(
        self, seat: Seat | None, reply: asyncio.Future[FromWorker], error: EngineError
    ) -> None:
        if seat is not None:
            self._group(seat.group, 1).end()
        reply.set_exception(error)

    async def _run(self, device: DeviceId, order: RunStage) -> FromWorker:
        for step in range(STEPS + 1):
            code = int(order.id in self._cancelled)
            if order.seat is not None:
                group = self._group(order.seat.group, order.seat.size)
                code = await group.agree(order.seat.rank, code)
            if code:
                message = "cancelled"
                raise RequestCancelledError(message)
            if step == 1:
                await self._suffer(device, order)
            await asyncio.sleep(1.0)
        reports = tuple(a_report(task) for task in order.tasks)
        return LaunchDone(order.id, reports)

    async def _suffer(self, device: DeviceId, order: RunStage) -> None:
        match self.fate(order.launch, device):
            case Fate.FAILS:
                message = f"{device} failed"
                raise StageFailedError(message, retryable=True)
            case Fate.DIES:
                message = f"{device} died"
                raise WorkerLostError(message)
            case Fate.DEAF:
                await asyncio.sleep(3600)

    def close(self) -> None:
        for task in (*self._tasks.values(), *self._restarts):
            task.cancel()

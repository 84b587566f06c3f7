"""The two threads of a worker that move weights, beside whatever the worker runs.

One hears orders on a socket of its own, so that a long denoise step delays none of them, and obeys
what takes no time: a launch that needs memory must not wait for a load that happens to be under way.
The other loads, stage after stage, and looks between two chunks whether it was told to stop.
"""

from __future__ import annotations

import time
from queue import SimpleQueue
from typing import NoReturn

import msgspec
import structlog
import torch
import zmq

from engine.executors.slot import LOAD_SUFFIX
from engine.messages import (
    ForgetHostCopy,
    FromWorker,
    LendStage,
    LoaderReady,
    LoadStage,
    ReclaimStage,
    StageLent,
    StageLoaded,
    StageLoadFailed,
    StageLoadStopped,
    StageUnloaded,
    StopLoad,
    ToLoader,
    UnloadStage,
)
from engine.stages.peers import reclaim_segments
from engine.stages.running import describe, is_for_memory
from engine.stages.shelf import StageShelf
from engine.types import StageKey

log = structlog.get_logger(__name__)


class LoaderThread:
    """Obeys residency orders: loads one after another, all others at once."""

    def __init__(self, endpoint: str, identity: str, shelf: StageShelf) -> None:
        """Know where to connect; `serve` and `load_all` run on a thread each."""
        self._endpoint, self._identity, self._shelf = endpoint, f"{identity}{LOAD_SUFFIX}", shelf
        self._loads: SimpleQueue[LoadStage] = SimpleQueue()
        self._stopped: set[StageKey] = set()

    @property
    def _ended(self) -> str:
        """Where the loading thread says what came of a load: a socket serves one thread only."""
        return f"inproc://ended/{self._identity}"

    def serve(self) -> NoReturn:
        """Report for work, then obey for ever."""
        self._shelf.settle_in()
        decoder = msgspec.msgpack.Decoder(ToLoader)
        ended: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        ended.bind(self._ended)
        orders: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        orders.setsockopt(zmq.IDENTITY, self._identity.encode())
        orders.connect(self._endpoint)
        orders.send(msgspec.msgpack.encode(LoaderReady()))
        poller = zmq.Poller()
        poller.register(ended, zmq.POLLIN)
        poller.register(orders, zmq.POLLIN)
        while True:
            for socket, _event in poller.poll():
                if socket is ended:
                    orders.send(ended.recv())
                elif (reply := self._obey(decoder.decode(orders.recv()))) is not None:
                    orders.send(msgspec.msgpack.encode(reply))

    def _obey(self, message: ToLoader) -> FromWorker | None:
        """Do what takes no time and return the reply, if it has one now."""
        match message:
            case LoadStage(stage):
                self._stopped.discard(stage)  # that was meant for a load before
                self._loads.put(message)
            case StopLoad(stage):
                self._stopped.add(stage)
            case LendStage(stage):
                return StageLent(stage, self._shelf.lend(stage))
            case ReclaimStage(segments):
                reclaim_segments(segments)
            case UnloadStage(stage):
                self._shelf.unload(stage)
                return StageUnloaded(stage)
            case ForgetHostCopy(path):
                self._shelf.forget_host_copy(path)
        return None

    def load_all(self, threads: int) -> NoReturn:
        """Load what is ordered, for ever; copies use `threads` CPU threads."""
        self._shelf.settle_in()
        torch.set_num_threads(threads)
        ended: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        ended.connect(self._ended)
        while True:
            ended.send(msgspec.msgpack.encode(self._load(self._loads.get())))

    def _load(self, order: LoadStage) -> StageLoaded | StageLoadStopped | StageLoadFailed:
        with structlog.contextvars.bound_contextvars(**order.ids):
            return self._attempt(order)

    def _attempt(self, order: LoadStage) -> StageLoaded | StageLoadStopped | StageLoadFailed:
        began, stage = time.perf_counter(), order.stage
        try:
            loaded = self._shelf.load(order, lambda: stage in self._stopped)
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_load_failed", stage=str(stage))
            message = f"Cannot load {stage}: {describe(error)}"
            return StageLoadFailed(stage, message, retryable=is_for_memory(error))
        if loaded.is_stopped:
            return StageLoadStopped(stage, loaded.filled_bytes)
        load_s = time.perf_counter() - began
        return StageLoaded(stage, load_s, loaded.source, loaded.filled_bytes)

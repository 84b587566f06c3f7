"""The thread of a worker that moves weights, beside whatever the worker runs.

It hears its orders on a socket of its own, so that a long denoise step delays none of them, and
looks for an order to stop between two chunks.
"""

from __future__ import annotations

import time
from collections import deque
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
    StageLent,
    StageLoaded,
    StageLoadFailed,
    StageLoadStopped,
    StageUnloaded,
    StopLoad,
    ToLoader,
    UnloadStage,
)
from engine.stages.running import describe, is_for_memory
from engine.stages.shelf import StageShelf
from engine.types import StageKey

log = structlog.get_logger(__name__)


class LoaderThread:
    """Obeys residency orders, one after another."""

    def __init__(self, endpoint: str, identity: str, shelf: StageShelf) -> None:
        """Know where to connect; `serve` runs on the thread."""
        self._endpoint, self._identity, self._shelf = endpoint, f"{identity}{LOAD_SUFFIX}", shelf
        self._decoder = msgspec.msgpack.Decoder(ToLoader)
        self._inbox: deque[ToLoader] = deque()
        self._socket: zmq.Socket[bytes]

    def serve(self, threads: int) -> NoReturn:
        """Report for work, then obey for ever; copies use `threads` CPU threads."""
        self._shelf.settle_in()
        torch.set_num_threads(threads)
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, self._identity.encode())
        self._socket.connect(self._endpoint)
        self._send(LoaderReady())
        while True:
            while not self._inbox:
                self._accept(self._socket.recv())
            self._obey(self._inbox.popleft())

    def _obey(self, message: ToLoader) -> None:
        match message:
            case LoadStage():
                with structlog.contextvars.bound_contextvars(**message.ids):
                    reply = self._load(message)
                self._send(reply)
            case LendStage(stage):
                self._send(StageLent(stage, self._shelf.lend(stage)))
            case UnloadStage(stage):
                self._shelf.unload(stage)
                self._send(StageUnloaded(stage))
            case ForgetHostCopy(path):
                self._shelf.forget_host_copy(path)
            case StopLoad():
                pass  # what it meant is over

    def _accept(self, payload: bytes) -> None:
        self._inbox.append(self._decoder.decode(payload))

    def _is_stopped(self, stage: StageKey) -> bool:
        """Hear what has arrived, and say whether the load of `stage` should stop."""
        while self._socket.poll(0):
            self._accept(self._socket.recv())
        return StopLoad(stage) in self._inbox

    def _load(self, order: LoadStage) -> StageLoaded | StageLoadStopped | StageLoadFailed:
        began, stage = time.perf_counter(), order.stage
        try:
            loaded = self._shelf.load(order, lambda: self._is_stopped(stage))
        except Exception as error:  # process boundary: reported, not swallowed
            log.exception("stage_load_failed", stage=str(stage))
            message = f"Cannot load {stage}: {describe(error)}"
            return StageLoadFailed(stage, message, retryable=is_for_memory(error))
        if loaded.is_stopped:
            return StageLoadStopped(stage, loaded.filled_bytes)
        load_s = time.perf_counter() - began
        return StageLoaded(stage, load_s, loaded.source, loaded.filled_bytes)

    def _send(self, message: FromWorker) -> None:
        self._socket.send(msgspec.msgpack.encode(message))

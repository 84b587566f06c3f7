"""A worker's loader: what takes no time does not wait for a load that is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import msgspec
import pytest
import torch
import zmq

from engine.messages import (
    FromWorker,
    LoaderReady,
    LoadSource,
    LoadStage,
    ReclaimStage,
    StageLoaded,
    StageLoadStopped,
    StageUnloaded,
    StopLoad,
    ToLoader,
    UnloadStage,
)
from engine.stages.loader_thread import LoaderThread
from engine.stages.peers import CudaSegment
from engine.stages.shelf import Loaded, StageShelf
from engine.types import StageKey, StageKind
from tests.support.builders import MODEL

ENCODE, DIFFUSE, DECODE = (StageKey(MODEL, kind) for kind in StageKind)
PATIENCE_S = 60.0


class SlowShelf(StageShelf):
    """Loads until it is let go on or stopped."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.began, self.go_on = threading.Semaphore(0), threading.Event()
        self.order: list[StageKey] = []

    def load(self, order: LoadStage, stopped: Callable[[], bool] = lambda: False) -> Loaded:
        self.began.release()
        with self._moving():
            while not self.go_on.wait(0.005):
                if stopped():
                    return Loaded(LoadSource.HOST, is_stopped=True)
        self.order.append(order.stage)
        return Loaded(LoadSource.HOST)


class Controller:
    """Talks to one loader whose threads run."""

    def __init__(self) -> None:
        self.shelf, endpoint = SlowShelf(), f"inproc://controller-{uuid4()}"
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.bind(endpoint)
        self._loader = LoaderThread(endpoint, f"cpu:0#{uuid4()}", self.shelf)
        for work in (self._loader.serve, lambda: self._loader.load_all(1)):
            threading.Thread(target=work, daemon=True).start()
        assert isinstance(self.hear(), LoaderReady)

    def say(self, order: ToLoader) -> None:
        self._socket.send_multipart([self._name, msgspec.msgpack.encode(order)])

    def hear(self) -> FromWorker:
        assert self._socket.poll(1000 * PATIENCE_S)
        self._name, payload = self._socket.recv_multipart()
        return msgspec.msgpack.decode(payload, type=FromWorker)

    def begin(self, stage: StageKey) -> None:
        self.say(LoadStage(stage, "folder", "flux"))
        assert self.shelf.began.acquire(timeout=PATIENCE_S)

    def close(self) -> None:
        self.shelf.go_on.set()
        self._socket.close(linger=0)


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def test_an_eviction_does_not_wait_for_the_load_under_way(controller: Controller) -> None:
    controller.begin(DIFFUSE)
    controller.say(UnloadStage(ENCODE))
    assert controller.hear() == StageUnloaded(ENCODE)
    assert controller.shelf.has_moved(since=1)  # the load still moves
    controller.shelf.go_on.set()
    loaded = controller.hear()
    assert isinstance(loaded, StageLoaded)
    assert loaded.stage == DIFFUSE


def test_what_a_dead_reader_had_open_is_counted_as_closed(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[tuple[bytes, int]]()
    release = "_release_ipc_counter_cuda"
    monkeypatch.setattr(torch.UntypedStorage, release, lambda *counter: closed.append(counter))
    segment = CudaSegment(0, b"handle", 256, 0, b"counter", 7, b"event", event_sync_required=True)
    controller.say(ReclaimStage(msgspec.msgpack.encode([segment])))
    controller.say(UnloadStage(ENCODE))
    assert controller.hear() == StageUnloaded(ENCODE)
    assert closed == [(b"counter", 7)]


def test_a_load_is_stopped_while_others_wait_their_turn(controller: Controller) -> None:
    controller.begin(DIFFUSE)
    controller.say(LoadStage(DECODE, "folder", "flux"))
    controller.say(StopLoad(DIFFUSE))
    assert controller.hear() == StageLoadStopped(DIFFUSE)
    controller.shelf.go_on.set()
    last = controller.hear()
    assert isinstance(last, StageLoaded)
    assert controller.shelf.order == [DECODE]


def test_a_stop_that_came_too_late_stops_no_later_load(controller: Controller) -> None:
    controller.shelf.go_on.set()
    controller.begin(DIFFUSE)
    assert isinstance(controller.hear(), StageLoaded)
    controller.say(StopLoad(DIFFUSE))
    controller.shelf.go_on.clear()
    controller.begin(DIFFUSE)
    controller.shelf.go_on.set()
    assert isinstance(controller.hear(), StageLoaded)

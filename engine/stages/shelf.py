"""The stages that live on a worker's device: loaded, looked up while they run, unloaded.

Weights come from the node's host copy, which the first load of a stage fills from its files. What
a stage is made of besides weights is kept when it is unloaded, so that it comes back at the price
of a copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import structlog
import torch
from torch import Tensor

from engine.messages import HostCopy, LoadSource, LoadStage
from engine.stages.base import Stage
from engine.stages.flat import LayoutMismatchError, bind, on_meta
from engine.stages.heap import give_back
from engine.stages.host_copy import (
    HostSegments,
    LoadStoppedError,
    PinnedMaps,
    copy_to_device,
    write_copy,
)
from engine.stages.peers import lend_segments, open_segments
from engine.stages.registry import Parts, dtype_for, load_parts, sketch_parts
from engine.types import StageKey

log = structlog.get_logger(__name__)


class Loaded(NamedTuple):
    """What a load came to.

    Attributes:
        source: where the weights came from.
        filled_bytes: what the host copy that it made takes; 0 if it made none.
        is_stopped: it was told to stop, and nothing of it is left on the device.
    """

    source: LoadSource
    filled_bytes: int = 0
    is_stopped: bool = False


class StageShelf:
    """The device copies of one worker.

    Attributes:
        stages: those that are loaded.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin empty."""
        self._device = device
        self._maps = PinnedMaps(device)
        self._reading = threading.Lock()
        self._reading_disturbs = dtype_for(device.type) is not torch.get_default_dtype()
        self.stages: dict[StageKey, Stage] = {}
        self._sketches: dict[StageKey, Parts] = {}
        self._unbind: dict[StageKey, Callable[[], None]] = {}
        self._segments: dict[StageKey, Sequence[Tensor]] = {}
        self._moves = self._moving_now = 0
        self._counting = threading.Lock()

    def settle_in(self) -> None:
        """Let what this thread asks of CUDA without naming a device mean the worker's own.

        Each thread begins on the first GPU, and page-locking would open a context there.
        """
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    @property
    def moves(self) -> int:
        """How often weights were loaded or unloaded so far."""
        return self._moves

    def has_moved(self, since: int) -> bool:
        """Whether weights came, went or are on their way since there were `since` moves."""
        return bool(self._moving_now) or self._moves != since

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Count what moves: a stage may be unloaded while another is loaded."""
        with self._counting:
            self._moving_now += 1
        try:
            yield
        finally:
            with self._counting:
                self._moves, self._moving_now = self._moves + 1, self._moving_now - 1

    def undisturbed(self) -> AbstractContextManager[object]:
        """Keep stages from being read from files while one runs, where that would change it.

        Libraries set the process's default number format while they read weights in another one.
        """
        return self._reading if self._reading_disturbs else nullcontext()

    def load(self, order: LoadStage, stopped: Callable[[], bool] = lambda: False) -> Loaded:
        """Make a stage resident, unless `stopped()` becomes true between two chunks."""
        give_back()
        with self._moving():
            if order.host is None:
                return self._load_alone(order)
            if order.host.is_filled:
                return self._load_copy(order, order.host, stopped)
            return self._load_and_fill(order, order.host, stopped)

    def _load_alone(self, order: LoadStage) -> Loaded:
        """Load from files, past the host store."""
        self.stages[order.stage] = self._read(order).to(self._device)
        return Loaded(LoadSource.FILE)

    def _load_and_fill(
        self, order: LoadStage, host: HostCopy, stopped: Callable[[], bool]
    ) -> Loaded:
        parts = self._read(order)
        for_cpu = self._device.type == "cpu"
        copy = write_copy(Path(host.path), parts.modules, host.size_bytes, for_cpu=for_cpu)
        if copy is None:
            self.stages[order.stage] = parts.to(self._device)
            return Loaded(LoadSource.FILE)
        placed = self._place(order.stage, parts, self._maps.add(host.path, copy), stopped)
        return Loaded(LoadSource.FILE, copy.layout.size_bytes, is_stopped=not placed)

    def _load_copy(self, order: LoadStage, host: HostCopy, stopped: Callable[[], bool]) -> Loaded:
        try:
            parts = self._sketches.get(order.stage) or self._sketch(order)
            copy, peer = self._maps.open(host.path), self._peer_of(order)
            placed = self._place(order.stage, parts, copy, stopped, peer)
        except LayoutMismatchError as error:  # a class that builds itself from its weights
            log.warning("sketch_does_not_fit", stage=str(order.stage), detail=str(error))
            return self._load_alone(order)
        source = LoadSource.HOST if peer is None else LoadSource.PEER
        return Loaded(source, is_stopped=not placed)

    def _peer_of(self, order: LoadStage) -> list[Tensor] | None:
        """Open the device copy that a peer lends; None if there is none, or it cannot be reached."""
        try:
            return open_segments(order.peer) if order.peer else None
        except RuntimeError as error:
            log.warning("peer_not_reached", stage=str(order.stage), detail=str(error))
            return None

    def _read(self, order: LoadStage) -> Parts:
        dtype = dtype_for(self._device.type)
        with self._reading:
            return load_parts(Path(order.folder), order.family, order.stage.kind, dtype)

    def _sketch(self, order: LoadStage) -> Parts:
        try:
            return sketch_parts(Path(order.folder), order.family, order.stage.kind)
        except (NotImplementedError, RuntimeError) as error:  # it computes with its weights
            raise LayoutMismatchError(str(error)) from error

    def _place(
        self,
        stage: StageKey,
        parts: Parts,
        host: HostSegments,
        stopped: Callable[[], bool],
        peer: Sequence[Tensor] | None = None,
    ) -> bool:
        """Copy the weights to the device and let the stage use them there; False if stopped."""
        layout, source = host.layout, host.segments if peer is None else peer
        try:
            segments = copy_to_device(source, self._device, stopped)
        except LoadStoppedError:
            return False
        bind(parts.modules, layout, segments)
        self._segments[stage] = segments
        self.stages[stage], self._sketches[stage] = parts.stage, parts
        self._unbind[stage] = lambda: bind(parts.modules, layout, on_meta(layout))
        return True

    def lend(self, stage: StageKey) -> bytes:
        """Return how another process opens a stage's device copy; empty if it cannot."""
        try:
            return lend_segments(self._segments[stage])
        except (KeyError, RuntimeError) as error:
            log.warning("stage_not_lent", stage=str(stage), detail=repr(error))
            return b""

    def unload(self, stage: StageKey) -> None:
        """Free a stage's weights; harmless if it is not loaded. Nobody reads them any more."""
        with self._moving():
            self.stages.pop(stage, None)
            self._segments.pop(stage, None)
            if (unbind := self._unbind.pop(stage, None)) is not None:
                unbind()
        give_back()
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()  # what peers have read counts as theirs until then
            torch.cuda.empty_cache()

    def forget_host_copy(self, path: str) -> None:
        """Unmap a host copy that its store has deleted."""
        self._maps.forget(path)

"""Loads and unloads of one node's workers: over their loader threads, through the host store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from engine.errors import EngineError, WorkerLostError
from engine.executors.lending import Lending
from engine.host_store import HostStore, Loan, booked_bytes
from engine.messages import (
    ForgetHostCopy,
    FromWorker,
    LendStage,
    LoadStage,
    ReclaimStage,
    StageLent,
    StageLoaded,
    StageLoadStopped,
    StopLoad,
    ToLoader,
    UnloadStage,
)
from engine.types import DeviceId, ModelId, StageKey
from observability.logging import bound_ids

if TYPE_CHECKING:
    from engine.pipelines import PipelineSpec


class Loads:
    """Makes stages resident on the devices of one node.

    Args:
        ask: sends an order to a device's loader and waits for the reply to `key`.
        tell: sends one that has no reply.
        has_peers: whether a device copies from another's memory (CUDA); on CPU devices the host copy
            is as near.
        host_bytes: what host copies may take together; None: what all models weigh, or half of
            what is free under `folder` if that is less.
    """

    def __init__(
        self,
        specs: Mapping[ModelId, PipelineSpec],
        devices: Iterable[DeviceId],
        folder: Path,
        host_bytes: int | None,
        *,
        has_peers: bool,
        ask: Callable[[DeviceId, str, ToLoader], Awaitable[FromWorker]],
        tell: Callable[[DeviceId, ToLoader], None],
    ) -> None:
        """Make the host store's folder."""
        self._specs, self._ask, self._tell = specs, ask, tell
        self._lending = Lending() if has_peers else None
        self._waiting: dict[DeviceId, set[asyncio.Timeout]] = {name: set() for name in devices}
        self._why_lost: dict[DeviceId, str] = {}
        budget = _host_budget(folder, specs.values()) if host_bytes is None else host_bytes
        self.host = HostStore(folder / "weights", budget, self._forget)

    def _forget(self, path: str) -> None:
        for device in self._waiting:
            self._tell(device, ForgetHostCopy(path))

    async def load(self, device: DeviceId, stage: StageKey) -> float:
        """Load a stage; see `Executor.load`. Returns the seconds the worker measured."""
        life = asyncio.timeout(None)  # of the device, while nothing was asked of it: `lost` ends it
        self._waiting[device].add(life)
        try:
            async with life:
                return await self._load(device, stage, life)
        except TimeoutError as error:
            raise WorkerLostError(self._why_lost[device], began=False) from error
        finally:
            self._waiting[device].discard(life)

    def lost(self, device: DeviceId, reason: str) -> None:
        """End the loads that a worker that died was not asked for yet.

        They wait for others to fill a host copy, say, and would be obeyed by the worker that comes
        next, in whose memory nobody has booked them.
        """
        if self._lending is not None:
            self._lending.died(device)
        lives, self._waiting[device] = self._waiting[device], set()
        self._why_lost[device] = reason
        for life in lives:
            life.reschedule(asyncio.get_running_loop().time())

    async def _load(self, device: DeviceId, stage: StageKey, life: asyncio.Timeout) -> float:
        spec = self._specs[stage.model]
        async with self.host.borrow(stage, spec.weight_bytes[stage.kind]) as loan:
            order = LoadStage(stage, spec.folder, spec.family, loan.copy, ids=bound_ids())
            async with self._from_peer(device, order) as order:
                self._waiting[device].discard(life)
                reply = await self._obeyed(device, order, loan)
            loan.filled_bytes = reply.filled_bytes
            if self._lending is not None:
                self._lending.came(device, stage)
            return reply.load_s

    async def _obeyed(self, device: DeviceId, order: LoadStage, loan: Loan) -> StageLoaded:
        asking = asyncio.ensure_future(self._ask(device, f"load {order.stage}", order))
        try:
            reply = await asyncio.shield(asking)
        except asyncio.CancelledError:
            await self._stop(device, order.stage, asking, loan)
            raise
        assert isinstance(reply, StageLoaded)
        return reply

    @asynccontextmanager
    async def _from_peer(self, device: DeviceId, order: LoadStage) -> AsyncIterator[LoadStage]:
        """Let a load read from a device that holds the stage; the lender keeps it meanwhile."""
        readable = order.host is not None and order.host.is_filled  # its layout lies there
        lender = self._lending.lender(device, order.stage) if self._lending and readable else None
        if self._lending is None or lender is None:
            yield order
            return
        with self._lending.lent(lender, order.stage):
            try:
                order = msgspec.structs.replace(order, peer=await self._lent(lender, order.stage))
            except WorkerLostError:  # the host copy is still there
                self._lending.went(lender, order.stage)
            was_read = False
            try:
                yield order
                was_read = True
            finally:  # it may have died without closing what it read
                if order.peer and not was_read:
                    self._tell(lender, ReclaimStage(order.peer))

    async def _lent(self, lender: DeviceId, stage: StageKey) -> bytes:
        """Have a stage lent; what nobody reads because the load was cancelled is reclaimed."""
        asking = asyncio.ensure_future(self._ask(lender, f"lend {stage}", LendStage(stage)))
        try:
            reply = await asyncio.shield(asking)
        except asyncio.CancelledError:
            with suppress(EngineError):
                unread = await asking
                assert isinstance(unread, StageLent)
                self._tell(lender, ReclaimStage(unread.segments))
            raise
        assert isinstance(reply, StageLent)
        return reply.segments

    async def _stop(
        self, device: DeviceId, stage: StageKey, asking: asyncio.Future[FromWorker], loan: Loan
    ) -> None:
        """Stop a load between two chunks, or undo it if it was too late for that."""
        self._tell(device, StopLoad(stage))
        with suppress(EngineError):  # it failed or its worker died: nothing is there
            match await asking:
                case StageLoaded(filled_bytes=filled_bytes):
                    loan.filled_bytes = filled_bytes
                    await self.unload(device, stage)
                case StageLoadStopped(filled_bytes=filled_bytes):
                    loan.filled_bytes = filled_bytes

    async def unload(self, device: DeviceId, stage: StageKey) -> None:
        """Free a stage's weights, once no peer reads them any more."""
        if self._lending is not None:
            self._lending.went(device, stage)
            await self._lending.returned(device, stage)
        await self._ask(device, f"unload {stage}", UnloadStage(stage))


def _host_budget(folder: Path, specs: Iterable[PipelineSpec]) -> int:
    weights = [size for spec in specs for size in spec.weight_bytes.values()]
    return min(shutil.disk_usage(folder).free // 2, sum(map(booked_bytes, weights)))

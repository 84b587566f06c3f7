"""Loads of one node: from a device that holds the stage, or after another has filled a host copy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.contextvars import bound_contextvars

from engine.errors import WorkerLostError
from engine.executors.loads import Loads
from engine.messages import (
    FromWorker,
    LendStage,
    LoadSource,
    LoadStage,
    ReclaimStage,
    StageLent,
    StageLoaded,
    StageUnloaded,
    ToLoader,
    UnloadStage,
)
from engine.types import DeviceId, StageKind
from tests.support.builders import a_spec

SPEC = a_spec(weight_bytes=dict.fromkeys(StageKind, 1000))
STAGE = SPEC.stage(StageKind.DIFFUSE)
FIRST, SECOND, THIRD = (DeviceId(f"cuda:{i}") for i in range(3))


class Workers:
    """Loaders that do at once what they are told, but for loads that are `held`, and `lending`."""

    def __init__(self, folder: Path, *, has_peers: bool = True) -> None:
        self.heard: list[tuple[DeviceId, ToLoader]] = []
        self.dead: set[DeviceId] = set()
        self.held: asyncio.Event | None = None
        self.lending: asyncio.Event | None = None
        self.loads = Loads(
            {SPEC.id: SPEC},
            (FIRST, SECOND, THIRD),
            folder,
            10 << 20,
            has_peers=has_peers,
            ask=self.ask,
            tell=lambda device, order: self.heard.append((device, order)),
        )

    async def ask(self, device: DeviceId, key: str, order: ToLoader) -> FromWorker:
        del key
        self.heard.append((device, order))
        if device in self.dead:
            raise WorkerLostError("gone")
        match order:
            case LendStage(stage):
                if self.lending is not None:
                    await self.lending.wait()
                return StageLent(stage, f"segments of {device}".encode())
            case UnloadStage(stage):
                return StageUnloaded(stage)
            case LoadStage(stage, host=host):
                if self.held is not None:
                    await self.held.wait()
                assert host is not None
                if not host.is_filled:
                    write(host.path)
                return StageLoaded(stage, 1.0, LoadSource.HOST, 0 if host.is_filled else 10)
        raise AssertionError(order)

    def sources(self) -> list[bytes]:
        return [order.peer for _device, order in self.heard if isinstance(order, LoadStage)]


def write(path: str) -> None:
    Path(path).write_bytes(bytes(10))


async def test_a_load_says_for_which_jobs_it_is(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    with bound_contextvars(job_id="job_1", request_id="req_1", tenant="acme"):
        await workers.loads.load(FIRST, STAGE)
    await workers.loads.load(SECOND, STAGE)
    ids = [order.ids for _device, order in workers.heard if isinstance(order, LoadStage)]
    assert ids == [{"job_id": "job_1", "request_id": "req_1"}, {}]


async def test_a_second_device_reads_from_the_first(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    await workers.loads.load(SECOND, STAGE)
    assert workers.sources() == [b"", b"segments of cuda:0"]


async def test_on_cpu_devices_the_host_copy_is_the_peer(tmp_path: Path) -> None:
    workers = Workers(tmp_path, has_peers=False)
    await workers.loads.load(FIRST, STAGE)
    await workers.loads.load(SECOND, STAGE)
    assert workers.sources() == [b"", b""]


async def test_while_one_reads_from_a_peer_the_next_reads_from_the_host(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    workers.held = asyncio.Event()
    both = [asyncio.create_task(workers.loads.load(d, STAGE)) for d in (SECOND, THIRD)]
    await asyncio.sleep(0.01)
    workers.held.set()
    await asyncio.gather(*both)
    assert sorted(workers.sources()) == [b"", b"", b"segments of cuda:0"]


async def test_what_was_lent_to_a_load_that_nobody_wants_any_more_is_reclaimed(
    tmp_path: Path,
) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    workers.lending = asyncio.Event()
    load = asyncio.create_task(workers.loads.load(SECOND, STAGE))
    await asyncio.sleep(0.01)
    load.cancel()
    await asyncio.sleep(0.01)
    workers.lending.set()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert workers.heard[-1] == (FIRST, ReclaimStage(b"segments of cuda:0"))


async def test_a_lender_keeps_its_copy_until_the_borrower_has_read_it(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    workers.held = asyncio.Event()
    load = asyncio.create_task(workers.loads.load(SECOND, STAGE))
    await asyncio.sleep(0.01)
    unload = asyncio.create_task(workers.loads.unload(FIRST, STAGE))
    await asyncio.sleep(0.01)
    assert not any(isinstance(order, UnloadStage) for _device, order in workers.heard)
    workers.held.set()
    await asyncio.gather(load, unload)
    assert isinstance(workers.heard[-1][1], UnloadStage)


@pytest.mark.parametrize("gone", ["unloaded", "dead"])
def test_a_lender_that_is_gone_costs_nothing_but_the_shorter_way(tmp_path: Path, gone: str) -> None:
    async def scenario() -> list[bytes]:
        workers = Workers(tmp_path)
        await workers.loads.load(FIRST, STAGE)
        if gone == "unloaded":
            await workers.loads.unload(FIRST, STAGE)
        else:
            workers.dead.add(FIRST)
        await workers.loads.load(SECOND, STAGE)
        return workers.sources()

    assert asyncio.run(scenario()) == [b"", b""]


async def test_a_load_that_waits_for_a_host_copy_ends_with_its_device(tmp_path: Path) -> None:
    workers = Workers(tmp_path, has_peers=False)
    workers.held = asyncio.Event()
    fills = asyncio.create_task(workers.loads.load(FIRST, STAGE))
    await asyncio.sleep(0)
    waits = asyncio.create_task(workers.loads.load(SECOND, STAGE))
    await asyncio.sleep(0.01)
    workers.loads.lost(SECOND, "out of memory")
    with pytest.raises(WorkerLostError, match="out of memory") as error:
        await waits
    assert not error.value.began
    workers.held.set()
    await fills
    assert [device for device, _order in workers.heard] == [FIRST]
    await workers.loads.load(SECOND, STAGE)  # its next process is asked again


async def test_a_lender_hears_of_a_reader_that_died_before_it_gives_its_copy_up(
    tmp_path: Path,
) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    workers.dead.add(SECOND)
    with pytest.raises(WorkerLostError):
        await workers.loads.load(SECOND, STAGE)
    await workers.loads.unload(FIRST, STAGE)
    told = [order for device, order in workers.heard if device == FIRST]
    assert told[-2:] == [ReclaimStage(b"segments of cuda:0"), UnloadStage(STAGE)]


async def test_a_lender_that_died_is_passed_over_for_one_that_lives(tmp_path: Path) -> None:
    workers = Workers(tmp_path)
    await workers.loads.load(FIRST, STAGE)
    await workers.loads.load(SECOND, STAGE)
    workers.loads.lost(FIRST, "out of memory")
    await workers.loads.load(THIRD, STAGE)
    assert workers.sources()[-1] == b"segments of cuda:1"

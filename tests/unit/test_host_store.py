"""Host copies of weights: read once, within a budget, deleted only when nobody reads them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.errors import LedgerError, StageFailedError
from engine.host_store import HostStore, booked_bytes
from engine.types import ModelId, StageKey, StageKind

ENCODE, DIFFUSE, DECODE = (StageKey(ModelId("m"), kind) for kind in StageKind)
WEIGHT = 1000
BOOKED = booked_bytes(WEIGHT)


def write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def exists(path: str) -> bool:
    return Path(path).exists()


async def fill(store: HostStore, stage: StageKey, size: int = WEIGHT) -> bool:
    """Load a stage as a worker would; return whether files had to be read."""
    async with store.borrow(stage, WEIGHT) as loan:
        if loan.copy is None or loan.copy.is_filled:
            return loan.copy is None
        await asyncio.sleep(0)
        write(loan.copy.path, bytes(size))
        loan.filled_bytes = size
        return True


async def test_many_devices_that_want_one_stage_at_once_read_its_files_once(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "w", 10 * BOOKED)
    reads = await asyncio.gather(*(fill(store, ENCODE) for _ in range(8)))
    assert reads == [True, *[False] * 7]
    assert store.used_bytes == WEIGHT
    store.check_integrity()


async def test_the_least_recently_used_copy_makes_room_and_workers_are_told(tmp_path: Path) -> None:
    gone: list[str] = []
    store = HostStore(tmp_path / "w", 2 * BOOKED, gone.append)
    await fill(store, ENCODE, BOOKED)
    await fill(store, DIFFUSE, BOOKED)
    await fill(store, ENCODE)
    await fill(store, DECODE)
    assert [store.holds(stage) for stage in (ENCODE, DIFFUSE, DECODE)] == [True, False, True]
    assert len(gone) == 1
    assert not exists(gone[0])
    store.check_integrity()


async def test_a_copy_that_is_being_read_is_never_deleted(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "w", BOOKED)
    await fill(store, ENCODE, BOOKED)
    async with store.borrow(ENCODE, WEIGHT) as reading, store.borrow(DIFFUSE, WEIGHT) as other:
        assert other.copy is None
        assert reading.copy is not None
        assert exists(reading.copy.path)
    async with store.borrow(DIFFUSE, WEIGHT) as loan:
        assert loan.copy is not None


async def test_a_stage_larger_than_the_budget_gets_no_copy_and_evicts_none(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "w", BOOKED)
    await fill(store, ENCODE)
    async with store.borrow(DIFFUSE, 100 * BOOKED) as loan:
        assert loan.copy is None
    assert store.holds(ENCODE)


async def test_after_a_load_that_failed_the_next_device_reads_the_files(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "w", BOOKED)

    async def fail() -> None:
        async with store.borrow(ENCODE, WEIGHT) as loan:
            assert loan.copy is not None
            write(loan.copy.path, b"half")
            await asyncio.sleep(0)
            raise StageFailedError("torn", retryable=False)

    failing = asyncio.create_task(fail())
    await asyncio.sleep(0)
    following = asyncio.create_task(fill(store, ENCODE))
    with pytest.raises(StageFailedError):
        await failing
    assert await following
    assert len(list((tmp_path / "w").iterdir())) == 1
    store.check_integrity()


async def test_a_copy_that_outgrew_what_was_booked_is_not_kept(tmp_path: Path) -> None:
    store = HostStore(tmp_path / "w", 10 * BOOKED)
    await fill(store, ENCODE, BOOKED + 1)
    assert not store.holds(ENCODE)
    assert store.used_bytes == 0
    await fill(store, ENCODE)
    [path] = (tmp_path / "w").iterdir()
    path.write_bytes(bytes(WEIGHT + 1))
    with pytest.raises(LedgerError, match="larger"):
        store.check_integrity()

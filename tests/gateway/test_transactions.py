"""What a transaction promises, on both databases: all or nothing, and nobody pays for others."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Connection, Engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from gateway.db.models import SecretRow
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl


class RefusedError(Exception):
    """What work raises that does not want to go on."""


def write(name: str, *, then: Exception | None = None) -> Callable[[Connection], str]:
    def work(connection: Connection) -> str:
        connection.execute(insert(SecretRow).values(name=name, value="00"))
        if then is not None:
            raise then
        return name

    return work


async def names(database: Database) -> list[str]:
    wanted = select(SecretRow.name).order_by(SecretRow.name)
    return await database.read(lambda connection: list(connection.scalars(wanted)))


async def test_of_writes_that_come_at_once_those_that_fail_take_nothing_with_them(
    database: Database,
) -> None:
    done = await asyncio.gather(
        database.write(write("a")),
        database.write(write("b", then=RefusedError("b"))),
        database.write(write("a")),
        database.write(write("c")),
        return_exceptions=True,
    )
    kinds = [type(outcome) for outcome in done]
    assert kinds[1::2] == [RefusedError, str]
    assert {kinds[0], kinds[2]} == {str, IntegrityError}  # whichever came first
    assert await names(database) == ["a", "c"]


async def test_an_error_does_not_tell_the_values_of_the_statement(database: Database) -> None:
    wrong = text("INSERT INTO nowhere VALUES (:prompt)").bindparams(prompt="a secret wish")
    with pytest.raises(DBAPIError) as caught:
        await database.execute(wrong)
    assert "nowhere" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_work_that_refuses_before_it_writes_lets_the_others_be_done_once(
    database: Database,
) -> None:
    runs: list[str] = []

    def work(connection: Connection) -> None:
        runs.append("good")
        write("a")(connection)

    def refuse(_connection: Connection) -> None:
        raise RefusedError

    done = await asyncio.gather(
        database.write(work), database.write(refuse), return_exceptions=True
    )
    assert [type(outcome) for outcome in done] == [type(None), RefusedError]
    assert runs == ["good"]


async def test_what_is_read_includes_what_was_written_before(database: Database) -> None:
    for name in ("a", "b", "c"):
        await database.write(write(name), sync=False)
        assert name in await names(database)


async def test_writes_that_wait_for_each_other_are_one_commit(tmp_path: Path) -> None:
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    commits: list[Connection] = []
    may_go_on, is_in = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        write("first")(connection)
        is_in.set()
        assert may_go_on.wait(10)

    first = asyncio.create_task(database.write(hold))
    await asyncio.to_thread(is_in.wait, 10)
    others = [asyncio.create_task(database.write(write(f"n{number}"))) for number in range(5)]
    await asyncio.sleep(0)  # they are in the queue now
    event.listen(Engine, "commit", note := commits.append)
    may_go_on.set()
    await asyncio.gather(first, *others)
    event.remove(Engine, "commit", note)
    assert len(commits) == 2  # the one that was held, and all others
    assert len(await names(database)) == 6
    await database.close()


async def test_a_power_cut_takes_nothing_that_was_written_before_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk := tmp_path / "disk").mkdir()

    def sync(_file: int) -> None:
        """What the files hold now is what the disk has for sure."""
        for part in ("", "-wal"):
            shutil.copy(tmp_path / f"trident.db{part}", disk)

    monkeypatch.setattr("gateway.db.write_ahead_log.os.fsync", sync)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    await database.write(write("a"), sync=False)
    await database.flush()
    await database.write(write("b"))  # a flush is a part of it
    await database.write(write("c"), sync=False)
    with sqlite3.connect(disk / "trident.db") as after:
        assert after.execute("SELECT name FROM secret ORDER BY name").fetchall() == [("a",), ("b",)]
    after.close()
    await database.close()


async def test_those_who_wait_for_the_disk_wait_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    is_in, may_go_on = threading.Event(), threading.Event()

    def sync(file: int) -> None:
        syncs.append(file)
        is_in.set()
        assert may_go_on.wait(10)

    monkeypatch.setattr("gateway.db.write_ahead_log.os.fsync", sync)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    first = asyncio.create_task(database.write(write("first")))
    await asyncio.to_thread(is_in.wait, 10)
    others = [asyncio.create_task(database.write(write(f"n{number}"))) for number in range(5)]
    while len(await names(database)) < 6:
        await asyncio.sleep(0.01)
    assert not first.done()
    may_go_on.set()
    await asyncio.gather(first, *others)
    assert len(syncs) == 2  # the one under way, and one for all others
    await database.close()


async def test_a_disk_that_fails_is_told_to_everyone_who_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(_file: int) -> None:
        raise OSError(5, "the disk is broken")

    monkeypatch.setattr("gateway.db.write_ahead_log.os.fsync", sync)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    done = await asyncio.gather(
        database.write(write("a")), database.write(write("b")), return_exceptions=True
    )
    assert [type(outcome) for outcome in done] == [OSError, OSError]
    await database.close()


async def write_many(database: Database, count: int, *, prefix: str = "n") -> None:
    for number in range(count):
        await database.write(write(f"{prefix}{number:04}"), sync=False)


def log_pages(folder: Path) -> int:
    return (folder / "trident.db-wal").stat().st_size // 4096


async def test_the_log_begins_anew_beside_those_who_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.db.write_ahead_log._WRITES_PER_CHECKPOINT", 10)
    monkeypatch.setattr("gateway.db.write_ahead_log._MOST_PAGES", 100)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    await write_many(database, 200)
    before, now, rounds = 0, log_pages(tmp_path), 1
    async with asyncio.timeout(60):
        while now > before:  # else it had room for 200 pages again
            await write_many(database, 200, prefix=f"{rounds}-")
            before, now, rounds = now, log_pages(tmp_path), rounds + 1
    assert len(await names(database)) == 200 * rounds
    await database.close()


async def test_no_commit_moves_the_log_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.db.write_ahead_log._WRITES_PER_CHECKPOINT", 10_000)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    await write_many(database, 600)
    assert log_pages(tmp_path) > 1000  # where SQLite would have begun anew
    await database.close()


async def test_a_checkpoint_that_fails_is_logged_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.db.write_ahead_log._WRITES_PER_CHECKPOINT", 1)
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()

    def broken(_path: str, **_options: object) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with structlog.testing.capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr("gateway.db.write_ahead_log.sqlite3.connect", broken)
        await database.write(write("a"), sync=False)
        while not logs:
            await asyncio.sleep(0.01)
    assert logs[0]["event"] == "checkpoint_failed"
    await write_many(database, 50)
    await database.close()
    assert not (tmp_path / "trident.db-wal").exists()  # all connections were closed


async def test_a_caller_who_leaves_neither_stops_nor_breaks_what_was_begun(
    database: Database,
) -> None:
    leaving = asyncio.create_task(database.write(write("left")))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await database.write(write("stayed"))
    assert "stayed" in await names(database)


async def test_a_database_that_cannot_be_opened_says_so_to_everyone_who_asks(
    tmp_path: Path,
) -> None:
    database = Database(DatabaseUrl.in_folder(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(Exception, match="unable to open database file"):
            await database.write(write("a"))
    await database.close()

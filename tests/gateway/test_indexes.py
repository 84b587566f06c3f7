"""What is asked again and again does not look at every job that is remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import Connection, Engine, event

from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.jobs.leases import JobLeases
from gateway.jobs.retention import Retention
from gateway.jobs.state import JobStatus
from gateway.jobs.store import JobStore, PageQuery
from gateway.storage.blobs import BlobStore
from tests.gateway.test_leases import ACME, MODELS, a_job


async def list_failed(database: Database, _: Path) -> None:
    await JobStore(database).page(PageQuery(tenant=ACME, limit=20, status=JobStatus.FAILED))


async def list_all(database: Database, _: Path) -> None:
    await JobStore(database).page(PageQuery(tenant=ACME, limit=20))


async def send_again(database: Database, _: Path) -> None:
    again = structs.replace(a_job(), fingerprint="f", retry_count=1)
    await JobStore(database).add(again, queue_limit=9, now_s=1000.0)


async def send_with_key(database: Database, _: Path) -> None:
    await JobStore(database).add(structs.replace(a_job(), key="k"), queue_limit=9)


async def lease(database: Database, _: Path) -> None:
    await JobLeases(database, "one").take(9, models=MODELS, now_s=1.0)


async def recover(database: Database, _: Path) -> None:
    await JobLeases(database, "one").recover(now_s=1.0)


async def remove_content(database: Database, folder: Path) -> None:
    await Retention(database, BlobStore.in_folder(folder), history_s=9.0).remove_content(now_s=1.0)


async def forget(database: Database, folder: Path) -> None:
    await Retention(database, BlobStore.in_folder(folder), history_s=9.0).forget(now_s=1.0)


@pytest.mark.parametrize(
    ("ask", "index"),
    [
        (list_failed, "ix_job_state (tenant=? AND status=?)"),
        (list_all, "ix_job_tenant (tenant=?)"),
        (send_again, "ix_job_fingerprint (tenant=? AND fingerprint=?)"),
        (send_with_key, "uq_job_idempotency_key (tenant=? AND idempotency_key=?)"),
        (lease, "ix_job_queue (status=?)"),
        (recover, "ix_job_expiry (status=? AND expires_at_s<?)"),
        (remove_content, "ix_job_content (content_removed_s=? AND expires_at_s<?)"),
        (forget, "ix_job_finished (status=? AND finished_s<?)"),
    ],
)
async def test_an_index_answers(
    ask: Callable[[Database, Path], Awaitable[None]], index: str, tmp_path: Path
) -> None:
    database = Database(DatabaseUrl.in_folder(tmp_path))
    await database.open()
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        await ask(database, tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    def explain(connection: Connection) -> list[str]:
        return [
            row.detail
            for statement, values in asked
            if " job" in statement and not statement.startswith("INSERT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        ]

    plan = await database.read(explain)
    await database.close()
    assert any(f"INDEX {index}" in line for line in plan), plan
    assert [line for line in plan if line.startswith("SCAN job")] == []

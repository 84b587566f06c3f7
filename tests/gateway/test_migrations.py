"""The layout of the database: what migrations make is what the models say, and nothing is lost."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from engine import Modality
from gateway.cli import main
from gateway.db import schema
from gateway.db.models import JobRow
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.jobs.store import JobStore
from tests.gateway.test_leases import ACME, a_job

# What `create_all` made before there were migrations.
BEFORE_MIGRATIONS = """
CREATE TABLE job (
    id BINARY(16) NOT NULL, tenant VARCHAR(64) NOT NULL, model VARCHAR(255) NOT NULL,
    modality VARCHAR(8) DEFAULT 'image' NOT NULL, status VARCHAR(16) NOT NULL,
    request TEXT NOT NULL, request_id VARCHAR(64) NOT NULL, traceparent VARCHAR(64),
    deadline_s DOUBLE NOT NULL, expires_at_s DOUBLE NOT NULL, started_s DOUBLE, finished_s DOUBLE,
    deleted_s DOUBLE, progress INTEGER DEFAULT '0' NOT NULL, attempts INTEGER NOT NULL,
    cancel_requested BOOLEAN NOT NULL, lease_owner VARCHAR(64), lease_until_s DOUBLE, error TEXT,
    timeline TEXT, sa_orm_sentinel INTEGER, created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL, CONSTRAINT pk_job PRIMARY KEY (id)
);
CREATE INDEX ix_job_queue ON job (status, deadline_s);
CREATE INDEX ix_job_tenant ON job (tenant, id);
CREATE INDEX ix_job_list ON job (tenant, modality, id);
CREATE TABLE artifact (
    id BINARY(16) NOT NULL, job_id BINARY(16) NOT NULL, tenant VARCHAR(64) NOT NULL,
    index_in_job INTEGER NOT NULL, blob VARCHAR(255) NOT NULL, media_type VARCHAR(64) NOT NULL,
    width_px INTEGER NOT NULL, height_px INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    seed VARCHAR(20) NOT NULL, sha256 VARCHAR(64) NOT NULL, sa_orm_sentinel INTEGER,
    created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL,
    CONSTRAINT pk_artifact PRIMARY KEY (id),
    CONSTRAINT fk_artifact_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE INDEX ix_artifact_job_id ON artifact (job_id);
INSERT INTO job VALUES (
    X'019A0000000070008000000000000001', 'acme', 'shapes', 'image', 'completed',
    '{"id":"job_019a0000000070008000000000000001","model":"shapes","prompt":"a red circle","shape":{"width_px":64,"height_px":64},"steps":4,"guidance_scale":1.0,"seed":1,"arrival_s":1.0,"deadline_s":2.0}',
    'req_1', NULL, 2.0, 1000.0, 1.0, 1.5, NULL, 100, 1, 0, NULL, NULL, NULL, '[]', NULL,
    '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000'
);
INSERT INTO artifact VALUES (
    X'019A0000000070008000000000000002', X'019A0000000070008000000000000001', 'acme', 0,
    'job_x/art_x.png', 'image/png', 64, 64, 3, '1', 'aa', NULL,
    '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000'
);
"""
OLD_JOB = "job_019a0000000070008000000000000001"


def layout(connection: sa.Connection) -> dict[str, Any]:
    """Return everything that is known of the tables but alembic's own."""
    found = sa.inspect(connection)
    return {
        table: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in found.get_columns(table)
            },
            "indexes": sorted(
                (str(index["name"]), tuple(index["column_names"]), bool(index["unique"]))
                for index in found.get_indexes(table)
            ),
            "key": found.get_pk_constraint(table)["constrained_columns"],
            "foreign": sorted(
                (str(key["name"]), key["referred_table"], str(key.get("options")))
                for key in found.get_foreign_keys(table)
            ),
        }
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def old_database(folder: Path, *changes: str) -> DatabaseUrl:
    with sqlite3.connect(folder / "trident.db") as connection:
        connection.executescript(BEFORE_MIGRATIONS)
        for change in changes:
            connection.execute(change)
    connection.close()
    return DatabaseUrl.in_folder(folder)


@pytest.fixture
def empty_url(database_url: DatabaseUrl) -> DatabaseUrl:
    """A database without any table."""
    if not database_url.is_sqlite:
        asyncio.run(in_transaction(database_url, drop_everything))
    return database_url


async def in_transaction(url: DatabaseUrl, action: Any) -> Any:
    database = Database(url)
    try:
        return await database.write(action)
    finally:
        await database.close()


def drop_everything(connection: sa.Connection) -> None:
    connection.execute(sa.text("DROP SCHEMA public CASCADE"))
    connection.execute(sa.text("CREATE SCHEMA public"))


def test_migrations_make_what_the_models_say(empty_url: DatabaseUrl) -> None:
    def by_models(connection: sa.Connection) -> dict[str, Any]:
        JobRow.metadata.create_all(connection)
        made = layout(connection)
        JobRow.metadata.drop_all(connection)
        return made

    def by_migrations(connection: sa.Connection) -> dict[str, Any]:
        schema.upgrade(connection)
        return layout(connection)

    wanted = asyncio.run(in_transaction(empty_url, by_models))
    assert asyncio.run(in_transaction(empty_url, by_migrations)) == wanted


def test_every_migration_can_be_undone(empty_url: DatabaseUrl) -> None:
    def there_and_back(connection: sa.Connection) -> dict[str, Any]:
        schema.upgrade(connection)
        schema.downgrade(connection)
        return layout(connection)

    assert asyncio.run(in_transaction(empty_url, there_and_back)) == {}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (
            "DROP INDEX ix_job_list",
            "ALTER TABLE job DROP COLUMN progress",
            "ALTER TABLE job DROP COLUMN deleted_s",
            "ALTER TABLE job DROP COLUMN modality",
        ),
    ],
    ids=["the last layout", "an older one"],
)
async def test_a_database_from_before_migrations_is_adopted_without_loss(
    tmp_path: Path, changes: tuple[str, ...]
) -> None:
    database = Database(old_database(tmp_path, *changes))
    await database.open()
    store = JobStore(database)
    old = await store.find(OLD_JOB, ACME, Modality.IMAGE)  # type: ignore[arg-type]
    new = await store.add(a_job(), queue_limit=9)
    assert old is not None
    assert (old.status, old.request.prompt) == ("completed", "a red circle")
    assert [artifact.blob for artifact in old.artifacts] == ["job_x/art_x.png"]
    assert await store.find(new.id, ACME, Modality.IMAGE) == new
    await database.close()


async def test_a_server_does_not_migrate_a_database_that_others_use(
    postgres: DatabaseUrl,
) -> None:
    await in_transaction(postgres, drop_everything)
    database, other = Database(postgres), Database(postgres)
    with pytest.raises(schema.SchemaError, match="trident migrate"):
        await database.open()
    await asyncio.gather(database.migrate(), other.migrate())
    await database.open()
    await asyncio.gather(database.close(), other.close())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name in ("TRIDENT_DATABASE", "TRIDENT_DATA_DIR", "TRIDENT_HOST", "TRIDENT_API_KEYS"):
        monkeypatch.setenv(name, "")
    return CliRunner()


def test_the_command_migrates_the_embedded_database(command: CliRunner, tmp_path: Path) -> None:
    done = command.invoke(main, ["migrate", "--data-dir", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    assert f"is at revision {schema.head()}" in done.output
    assert (tmp_path / "data/trident.db").exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://root:hunter2@host/db", "postgresql://USER:PASSWORD@HOST/NAME"),
        ("nonsense", "postgresql://USER:PASSWORD@HOST/NAME"),
        ("postgresql://root:hunter2@host:port/db", "postgresql://USER:PASSWORD@HOST/NAME"),
        ("sqlite://", "sqlite:///PATH"),
        ("postgresql://root:hunter2@127.0.0.1:1/db", "Cannot migrate"),
        ("postgresql://root:hunter2@host/db?sslmode=odd", "`sslmode` parameter must be one of"),
    ],
)
def test_the_command_says_what_is_wrong_without_the_password(
    command: CliRunner, url: str, words: str
) -> None:
    done = command.invoke(main, ["migrate", "--database", url])
    assert done.exit_code == 2
    assert words in done.output
    assert "hunter2" not in done.output
    assert "Traceback" not in done.output

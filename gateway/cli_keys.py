"""`trident keys`: API keys, kept in the database as digests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from gateway.auth.key_store import KeyStore, StoredKey
from gateway.auth.keys import parse_tenant
from gateway.cli_database import DATABASE_ERRORS, database_from, reason_of
from gateway.db.schema import SchemaError
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.refusal import RefusalError

T = TypeVar("T")

_DATABASE = click.option(
    "--database", metavar="URL", help="postgresql://... [a file in the data folder]."
)
_DATA_DIR = click.option("--data-dir", metavar="PATH", help="Where the embedded database is.")


@click.group()
def keys() -> None:
    """Make, list and revoke API keys. Servers follow within five seconds."""


@keys.command()
@click.option("--tenant", required=True, help="Whose key it is; jobs of tenants are apart.")
@click.option("--name", default="", help="What it is for.")
@_DATABASE
@_DATA_DIR
def create(tenant: str, name: str, database: str | None, data_dir: str | None) -> None:
    """Make a key and print it: it is shown this once and never again."""
    try:
        owner = parse_tenant(tenant)
    except ValueError as error:
        raise RefusalError(str(error)) from error
    url = database_from(database, data_dir)
    key, stored = _run(url, lambda store: store.create(owner, name[:64], now_s=time.time()))
    click.echo(
        f"Made {stored.id} for tenant {stored.tenant}, for servers on {url}. Keep it, it is not "
        "shown again:",
        err=True,
    )
    click.echo(key)


@keys.command("list")
@_DATABASE
@_DATA_DIR
def list_keys(database: str | None, data_dir: str | None) -> None:
    """List all keys: id, tenant, last characters, state, name."""
    for key in _run(database_from(database, data_dir), lambda store: store.all()):
        click.echo(_line(key))


@keys.command()
@click.argument("key_id", metavar="ID")
@_DATABASE
@_DATA_DIR
def revoke(key_id: str, database: str | None, data_dir: str | None) -> None:
    """Make the key ID (key_..., from `trident keys list`) worthless for good."""
    url = database_from(database, data_dir)
    revoked = _run(url, lambda store: store.revoke(key_id, now_s=time.time()))
    if revoked is None:
        message = f"No key {key_id} is in use; `trident keys list` shows all."
        raise RefusalError(message)
    click.echo(f"Revoked {revoked.id} of tenant {revoked.tenant}.")


def _run(url: DatabaseUrl, action: Callable[[KeyStore], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(url)
        try:
            await database.open()
            return await action(KeyStore(database))
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except SchemaError as error:
        raise RefusalError(str(error)) from error
    except DATABASE_ERRORS as error:
        message = f"Cannot use the database {url}: {reason_of(error)}"
        raise RefusalError(message) from error


def _line(key: StoredKey) -> str:
    made = datetime.fromtimestamp(key.created_s, UTC).date().isoformat()
    state = "active " if key.revoked_s is None else "revoked"
    return f"{key.id}  {state}  {key.tenant}  ...{key.hint}  {made}  {key.name}".rstrip()

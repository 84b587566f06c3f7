"""Commands that look after the database, apart from any server."""

from __future__ import annotations

import asyncio
import os
from typing import Final

import click
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.auth.key_store import KeyStore
from gateway.db import schema
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from gateway.refusal import RefusalError
from gateway.settings import Settings, SettingsError

DATABASE_ERRORS: Final = (SQLAlchemyError, OSError, ValueError)  # the last: asyncpg, of its URL


def database_from(url: str | None, data_dir: str | None) -> DatabaseUrl:
    """Return which database flags and variables name; its folder is made if need be.

    Raises:
        RefusalError: they name none.
    """
    wanted = {"TRIDENT_DATABASE": url, "TRIDENT_DATA_DIR": data_dir}
    os.environ.update({name: value for name, value in wanted.items() if value})
    try:
        settings = Settings.from_env()
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except SettingsError as error:
        raise RefusalError(str(error)) from error
    except OSError as error:
        message = f"Cannot use the data folder: {error}. Choose another --data-dir."
        raise RefusalError(message) from error
    return settings.database_url


def need_database(url: DatabaseUrl) -> bool:
    """Find out before anything starts whether a server could use the database.

    Returns whether there are API keys in it.

    Raises:
        RefusalError: it cannot be reached, or its layout is not up to date.
    """
    try:
        return asyncio.run(_open(url))
    except schema.SchemaError as error:
        raise RefusalError(str(error)) from error
    except DATABASE_ERRORS as error:
        message = f"Cannot use the database {url}: {reason_of(error)}"
        raise RefusalError(message) from error


def reason_of(error: Exception) -> str:
    """Return what a database said, without the statement that made it say so."""
    return str(error.orig if isinstance(error, DBAPIError) else error)


async def _open(url: DatabaseUrl) -> bool:
    database = Database(url)
    try:
        await database.open()
        return await KeyStore(database).any()
    finally:
        await database.close()


@click.command()
@click.option("--database", metavar="URL", help="postgresql://... [a file in the data folder].")
@click.option("--data-dir", metavar="PATH", help="Where the embedded database is.")
def migrate(database: str | None, data_dir: str | None) -> None:
    """Bring the database's layout up to date; does nothing if it is."""
    url = database_from(database, data_dir)
    try:
        asyncio.run(_migrate(url))
    except DATABASE_ERRORS as error:
        message = f"Cannot migrate {url}: {reason_of(error)}"
        raise RefusalError(message) from error
    click.echo(f"{url} is at revision {schema.head()}.")


async def _migrate(url: DatabaseUrl) -> None:
    database = Database(url)
    try:
        await database.migrate()
    finally:
        await database.close()

"""Bringing a database's layout up to date, and finding out whether it is.

Knows alembic and one connection; `session.py` decides when. Everything happens in the caller's
transaction: a migration that fails halfway leaves the layout as it was.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from sqlalchemy import Connection

_FOLDER: Final = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database's layout is not the one that this version of the program needs."""


def head() -> str | None:
    """Return the revision that this version of the program needs."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def current(connection: Connection) -> str | None:
    """Return the revision that a database is at; None if it was never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def upgrade(connection: Connection) -> None:
    """Run the migrations that a database has not seen yet."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def downgrade(connection: Connection) -> None:
    """Undo every migration, with all that is in the tables."""
    config = _config()
    config.attributes["connection"] = connection
    command.downgrade(config, "base")


def expect_current(connection: Connection) -> None:
    """Raise `SchemaError` if the database's layout is not up to date."""
    found, wanted = current(connection), head()
    if found != wanted:
        message = (
            f"The database is at revision {found or 'none'}, but this version needs {wanted}. "
            "Run: trident migrate"
        )
        raise SchemaError(message)


def _config() -> Config:
    # It says at every start which database it has found, on a level that ours is printed at.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config

"""Where the database is: URLs as people write them, with the drivers that we use."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

_FORMS: Final = "use postgresql://USER:PASSWORD@HOST/NAME or sqlite:///PATH."
_DRIVERS: Final[Mapping[str, str]] = {
    "sqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",  # what earlier versions were told
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


class DatabaseUrl(msgspec.Struct, frozen=True):
    """A URL with its driver; printing it shows no password."""

    text: str

    @classmethod
    def parse(cls, text: str) -> DatabaseUrl:
        """Read a URL of SQLite or PostgreSQL.

        Raises:
            ValueError: it is none, or its driver is not installed.
        """
        try:
            url = make_url(text)
            driver = _DRIVERS[url.drivername]
        except (
            ArgumentError,
            KeyError,
            ValueError,
        ) as error:  # no URL, of others, a port's letters
            raise ValueError(_FORMS) from error
        if driver == "sqlite" and (url.database or ":memory:") == ":memory:":
            message = f"a database in memory has no second connection; {_FORMS}"
            raise ValueError(message)
        if driver.endswith("asyncpg") and find_spec("asyncpg") is None:
            install = f"{sys.executable} -m pip install 'tridentserve[postgres]'"
            message = f"PostgreSQL needs a driver; run: {install}"
            raise ValueError(message)
        if "ssl" in url.query:  # as SQLAlchemy calls what PostgreSQL's own tools call sslmode
            url = url.difference_update_query(["ssl"]).update_query_dict(
                {"sslmode": url.query["ssl"]}
            )
        return cls(url.set(drivername=driver).render_as_string(hide_password=False))

    @classmethod
    def in_folder(cls, folder: Path) -> DatabaseUrl:
        """Return the embedded database of a data folder."""
        return cls(f"sqlite:///{folder / 'trident.db'}")

    @property
    def is_sqlite(self) -> bool:
        """Whether it names a file of this machine."""
        return self.text.startswith("sqlite")

    @property
    def dsn(self) -> str:
        """The same for asyncpg itself, which takes what PostgreSQL's own tools take."""
        plain = make_url(self.text).set(drivername="postgresql")
        return plain.render_as_string(hide_password=False)

    def __str__(self) -> str:
        """Return it without its password."""
        return make_url(self.text).render_as_string(hide_password=True)

    def __repr__(self) -> str:
        """Return it without its password."""
        return f"DatabaseUrl({self!s})"

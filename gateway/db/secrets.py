"""Secrets that all processes of a deployment share, kept in its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from gateway.db.models import SecretRow

if TYPE_CHECKING:
    from gateway.db.session import Database


class Secrets:
    """Named secrets; the first who asks for one decides what it is."""

    def __init__(self, database: Database) -> None:
        """Use `database` for every call."""
        self._database = database

    async def get_or_make(self, name: str, offered: bytes) -> bytes:
        """Return a secret; if there is none of this name, `offered` becomes it."""
        if (known := await self._get(name)) is not None:
            return known
        try:
            await self._database.execute(insert(SecretRow).values(name=name, value=offered.hex()))
        except IntegrityError:  # another process was faster
            return await self._get(name) or offered
        return offered

    async def _get(self, name: str) -> bytes | None:
        wanted = select(SecretRow.value).where(SecretRow.name == name)
        value = await self._database.read(lambda connection: connection.scalar(wanted))
        return None if value is None else bytes.fromhex(value)

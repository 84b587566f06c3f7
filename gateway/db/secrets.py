"""Secrets that all processes of a deployment share, kept in its database."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
            async with self._database.writing() as session:
                session.add(SecretRow(name=name, value=offered.hex()))
        except IntegrityError:  # another process was faster
            return await self._get(name) or offered
        return offered

    async def _get(self, name: str) -> bytes | None:
        async with self._database.reading() as session:
            row = await session.get(SecretRow, name)
            return None if row is None else bytes.fromhex(row.value)

"""API keys in the database: made, listed and revoked by command, found by digest on every request.

A key is random, so its SHA-256 cannot be turned back; a slow hash would only slow requests down.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import msgspec
from sqlalchemy import Table, insert, select, update
from uuid_utils.compat import uuid7

from gateway.auth.keys import digest_of
from gateway.auth.principal import Principal, TenantId
from gateway.db.models import ApiKeyRow

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from engine.ports import Clock
    from gateway.db.session import Database

_PREFIX: Final = "sk-trident-"
_SECRET_BYTES: Final = 32
_HINT: Final = 4
_ID: Final = "key_"
# A revoked key works so long at most; a new one ends open mode as soon.
FRESH_S: Final = 5.0
_MOST_CACHED: Final = 10_000
_KEYS: Final = cast("Table", ApiKeyRow.__table__)  # typed as anything to select from


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a key: not the key itself, only its last characters."""

    id: str
    tenant: TenantId
    name: str
    hint: str
    created_s: float
    revoked_s: float | None


class KeyStore:
    """The table of keys."""

    def __init__(self, database: Database) -> None:
        """Use `database` for every call."""
        self._database = database

    async def create(self, tenant: TenantId, name: str, *, now_s: float) -> tuple[str, StoredKey]:
        """Make a key; what a client has to send is returned here and nowhere else."""
        key = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        made = (
            insert(_KEYS)
            .values(
                id=uuid7(),
                tenant=tenant,
                name=name,
                digest=digest_of(key).hex(),
                hint=key[-_HINT:],
                created_s=now_s,
            )
            .returning(_KEYS)
        )
        return key, await self._database.write(
            lambda connection: _stored(connection.execute(made).one())
        )

    async def all(self) -> list[StoredKey]:
        """Return all keys in the order they were made, revoked ones included."""
        statement = select(_KEYS).order_by(_KEYS.c.id)
        return await self._database.read(
            lambda connection: [_stored(row) for row in connection.execute(statement)]
        )

    async def revoke(self, key_id: str, *, now_s: float) -> StoredKey | None:
        """Make a key worthless; None if there is no such key that is not yet."""
        try:
            identifier = UUID(hex=key_id.removeprefix(_ID))
        except ValueError:
            return None
        statement = (
            update(_KEYS)
            .where(_KEYS.c.id == identifier, _KEYS.c.revoked_s.is_(None))
            .values(revoked_s=now_s)
            .returning(_KEYS)
        )

        def work(connection: Connection) -> StoredKey | None:
            row = connection.execute(statement).one_or_none()
            return None if row is None else _stored(row)

        return await self._database.write(work)

    async def owner(self, digest: bytes) -> TenantId | None:
        """Return whose key has this digest, unless it was revoked."""
        statement = select(_KEYS.c.tenant).where(
            _KEYS.c.digest == digest.hex(), _KEYS.c.revoked_s.is_(None)
        )
        tenant = await self._database.read(lambda connection: connection.scalar(statement))
        return None if tenant is None else TenantId(tenant)

    async def any(self) -> bool:
        """Return whether some key would be accepted."""
        statement = select(_KEYS.c.id).where(_KEYS.c.revoked_s.is_(None)).limit(1)
        return (
            await self._database.read(lambda connection: connection.scalar(statement)) is not None
        )


class KnownKeys:
    """Keys of the database as the check on every request asks for them: remembered for seconds."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        """Begin knowing nothing."""
        self._store = store
        self._clock = clock
        self._owners: dict[bytes, tuple[Principal, float]] = {}
        self._any: tuple[bool, float] = (False, 0.0)

    async def principal(self, key: str) -> Principal | None:
        """Return whom a key belongs to; strangers' keys are not remembered."""
        digest, now_s = digest_of(key), self._clock.now()
        known = self._owners.get(digest)
        if known is not None and now_s < known[1]:
            return known[0]
        tenant = await self._store.owner(digest)
        if tenant is None:
            self._owners.pop(digest, None)
            return None
        if len(self._owners) >= _MOST_CACHED:
            self._owners.clear()
        principal = Principal(tenant)
        self._owners[digest] = (principal, now_s + FRESH_S)
        return principal

    async def any(self) -> bool:
        """Return whether some key would be accepted."""
        found, until_s = self._any
        now_s = self._clock.now()
        if now_s >= until_s:
            found = await self._store.any()
            self._any = (found, now_s + FRESH_S)
        return found


def _stored(row: Row[*tuple[Any, ...]]) -> StoredKey:
    return StoredKey(
        id=_ID + row.id.hex,
        tenant=TenantId(row.tenant),
        name=row.name,
        hint=row.hint,
        created_s=row.created_s,
        revoked_s=row.revoked_s,
    )

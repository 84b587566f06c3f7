"""Keys in the database: who they let in, for how long, and when none is needed."""

from __future__ import annotations

import httpx

from gateway.auth.key_store import FRESH_S, KeyStore, KnownKeys
from gateway.auth.keys import parse_keys
from gateway.auth.principal import Principal
from gateway.db.session import Database
from gateway.db.url import DatabaseUrl
from tests.gateway.conftest import Serve
from tests.gateway.test_leases import ACME, GLOBEX
from tests.gateway.test_runner import FakeClock


async def status(client: httpx.AsyncClient, key: str | None) -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return (await client.get("/v1/models", headers=headers)).status_code


async def test_a_key_lets_its_tenant_in_until_it_is_revoked(database: Database) -> None:
    store, clock = KeyStore(database), FakeClock()
    known = KnownKeys(store, clock)
    key, stored = await store.create(ACME, "staff", now_s=1.0)
    other, _ = await store.create(GLOBEX, "", now_s=2.0)
    assert await known.principal(key) == Principal(ACME)
    assert await known.principal(other) == Principal(GLOBEX)
    assert await known.principal(key + "x") is None
    assert await store.revoke(stored.id, now_s=3.0) is not None
    clock.now_s = FRESH_S
    assert await known.principal(key) is None
    assert await store.revoke(stored.id, now_s=4.0) is None
    assert [found.revoked_s for found in await store.all()] == [3.0, None]
    assert key not in repr(await store.all())


async def test_the_first_key_ends_open_mode_and_without_any_it_begins_again(
    serve: Serve, database_url: DatabaseUrl, database: Database
) -> None:
    store = KeyStore(database)
    async with serve(database=database_url) as client:
        assert await status(client, None) == 200
    key, stored = await store.create(ACME, "", now_s=1.0)
    async with serve(database=database_url) as client:
        assert [await status(client, k) for k in (None, "sk-wrong-key", key)] == [401, 401, 200]
    await store.revoke(stored.id, now_s=2.0)
    async with serve(database=database_url) as client:
        assert await status(client, None) == 200


async def test_a_server_that_strangers_reach_is_never_open(serve: Serve) -> None:
    async with serve(host="0.0.0.0") as client:  # noqa: S104
        assert await status(client, None) == 401


async def test_keys_of_the_settings_and_of_the_database_are_both_good(
    serve: Serve, database_url: DatabaseUrl, database: Database
) -> None:
    key, _ = await KeyStore(database).create(ACME, "", now_s=1.0)
    ring = parse_keys("globex:sk-globex-1")
    async with serve(database=database_url, keys=ring) as client:
        assert [await status(client, k) for k in (key, "sk-globex-1", None)] == [200, 200, 401]

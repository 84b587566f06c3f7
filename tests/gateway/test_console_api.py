"""The console is the operator's: open on this machine alone, with the admin key elsewhere."""

from __future__ import annotations

import httpx
import pytest

from gateway.auth.keys import parse_keys
from gateway.settings import Settings, SettingsError
from tests.gateway.conftest import Serve

KEYS = parse_keys("acme:sk-secret-1")
ADMIN = parse_keys("admin-secret-1")
THROUGH = 404  # no engine here has a console; who is not let through hears 401 or 403


async def asked(client: httpx.AsyncClient, **headers: str) -> tuple[int, str]:
    response = await client.get("/console/stream", headers=headers)
    return response.status_code, response.text


async def test_on_this_machine_the_console_needs_no_key(client: httpx.AsyncClient) -> None:
    assert (await asked(client))[0] == THROUGH


async def test_an_admin_key_is_wanted_even_on_this_machine(serve: Serve) -> None:
    async with serve(admin=ADMIN) as client:
        assert (await asked(client))[0] == 401
        assert (await asked(client, authorization="Bearer sk-secret-1"))[0] == 401
        assert (await asked(client, authorization="Bearer admin-secret-1"))[0] == THROUGH


async def test_elsewhere_a_server_without_an_admin_key_shows_nothing(serve: Serve) -> None:
    async with serve(keys=KEYS, host="0.0.0.0") as client:  # noqa: S104 - nothing is bound
        status, body = await asked(client, authorization="Bearer sk-secret-1")
    assert status == 403
    assert "TRIDENT_ADMIN_KEY" in body


async def test_a_tenants_key_does_not_open_the_console(serve: Serve) -> None:
    async with serve(keys=KEYS, admin=ADMIN, host="0.0.0.0") as client:  # noqa: S104 - nothing is bound
        assert (await asked(client, authorization="Bearer sk-secret-1"))[0] == 401


async def test_a_process_without_an_engine_says_where_one_is(client: httpx.AsyncClient) -> None:
    response = await client.get("/console/stream")
    assert response.status_code == 404
    assert "runs no engine" in response.text


def test_a_short_admin_key_is_refused_without_being_quoted() -> None:
    with pytest.raises(SettingsError, match="TRIDENT_ADMIN_KEY") as caught:
        Settings.from_env({"TRIDENT_ADMIN_KEY": "hush"})
    assert "hush" not in str(caught.value)


def test_settings_print_no_admin_key() -> None:
    assert "admin-secret-1" not in repr(Settings.from_env({"TRIDENT_ADMIN_KEY": "admin-secret-1"}))

"""The check in front of `/v1`: a bearer key becomes a `Principal`, before the body is read.

A guard, so it runs after routing: an unknown route is 404 without a key, as upstream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import structlog

from gateway.auth.keys import KeyRing, mask
from gateway.auth.principal import DEFAULT_TENANT, Principal
from gateway.errors import UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler
    from litestar.types import Guard

    from gateway.auth.hosts import OwnNames
    from gateway.auth.key_store import KnownKeys

PUBLIC: Final = "public"  # handler opt: needs no key because it checks a signature itself


class Authenticate:
    """Makes the caller's `Principal` the request's user, or raises `UnauthenticatedError`.

    Keys are in the settings and in the database. Without any at all, a server that only this
    machine can reach takes every caller for the default tenant who calls it by one of its names;
    any other server takes nobody.
    """

    def __init__(
        self, keys: KeyRing, known: KnownKeys, names: OwnNames, *, may_be_open: bool
    ) -> None:
        """Take the accepted keys, our names, and whether strangers could reach us."""
        self._keys = keys
        self._known = known
        self._names = names
        self._may_be_open = may_be_open

    @property
    def guard(self) -> Guard:
        """The check as a function: litestar copies guards, and an object would be copied whole."""

        async def check(
            connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
        ) -> None:
            if not handler.opt.get(PUBLIC):
                principal = await self._authenticate(connection.headers)
                connection.scope["user"] = principal
                structlog.contextvars.bind_contextvars(tenant=principal.tenant)

        return check

    async def is_open(self) -> bool:
        """Return whether no key is needed."""
        return self._may_be_open and not self._keys and not await self._known.any()

    async def _authenticate(self, headers: Mapping[str, str]) -> Principal:
        if await self.is_open():
            self._names.need(headers)
            return Principal(DEFAULT_TENANT)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            message = (
                "You didn't provide an API key. Send it in an Authorization header with the "
                "Bearer scheme: Authorization: Bearer YOUR_KEY."
            )
            raise UnauthenticatedError(message)
        principal = self._keys.principal(key) or await self._known.principal(key)
        if principal is None:
            message = f"Incorrect API key provided: {mask(key)}. Ask the operator for a valid one."
            raise UnauthenticatedError(message)
        return principal

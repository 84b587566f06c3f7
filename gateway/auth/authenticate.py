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
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

PUBLIC: Final = "public"  # handler opt: needs no key because it checks a signature itself


class Authenticate:
    """Makes the caller's `Principal` the request's user, or raises `UnauthenticatedError`."""

    def __init__(self, keys: KeyRing) -> None:
        """Take the accepted keys; without any, every caller is the default tenant."""
        self._keys = keys

    def __call__(
        self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
    ) -> None:
        """Authenticate, unless the handler is public."""
        if handler.opt.get(PUBLIC):
            return
        principal = self._authenticate(connection.headers.get("authorization"))
        connection.scope["user"] = principal
        structlog.contextvars.bind_contextvars(tenant=principal.tenant)

    def _authenticate(self, authorization: str | None) -> Principal:
        if not self._keys:
            return Principal(DEFAULT_TENANT)
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            message = (
                "You didn't provide an API key. Send it in an Authorization header with the "
                "Bearer scheme: Authorization: Bearer YOUR_KEY."
            )
            raise UnauthenticatedError(message)
        principal = self._keys.principal(key)
        if principal is None:
            message = f"Incorrect API key provided: {mask(key)}. Ask the operator for a valid one."
            raise UnauthenticatedError(message)
        return principal

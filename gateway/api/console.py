"""`/console/stream`: what the console shows of this process's engine.

It shows every tenant's requests (never prompts), so it is for the operator: on a server that others
can reach it wants the admin key, and on one that only this machine can reach it wants it if there
is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.response import Stream

from gateway.auth.hosts import OwnNames
from gateway.auth.keys import KeyRing
from gateway.console import ConsoleFeed
from gateway.errors import ForbiddenError, UnauthenticatedError
from gateway.middleware import QUIET

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}


class AdminOnly:
    """A guard: lets the operator through."""

    def __init__(self, admin: KeyRing, names: OwnNames, *, only_this_machine: bool) -> None:
        """Without a key nobody is let through unless only this machine, by our names, reaches us."""
        self._admin = admin
        self._names = names
        self._only_this_machine = only_this_machine

    def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Check the bearer key."""
        if not self._admin:
            if self._only_this_machine:
                self._names.need(connection.headers)
                return
            message = (
                "The console shows all tenants' requests. Set TRIDENT_ADMIN_KEY on the server "
                "and give that key here."
            )
            raise ForbiddenError(message, code="admin_key_not_set")
        scheme, _space, key = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or self._admin.principal(key.strip()) is None:
            message = "The console wants the admin key, as Authorization: Bearer ADMIN_KEY."
            raise UnauthenticatedError(message)


class ConsoleController(Controller):
    """What the operator's page asks for."""

    path = "/console"
    include_in_schema = False
    opt = {QUIET: True}  # noqa: RUF012 - litestar reads it from the class

    @get("/stream")
    async def stream(self, feed: NamedDependency[ConsoleFeed]) -> Stream:
        """Stream facts and states of the engine as server-sent events, until the page leaves."""
        return Stream(feed.stream(), media_type="text/event-stream", headers=dict(_HEADERS))

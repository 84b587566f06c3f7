"""Where clients reach this server, for links in answers."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from litestar import Request

from gateway.errors import RequestError

_MAX_PORT: Final = 65_535
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
)


class BaseUrl(msgspec.Struct, frozen=True):
    """`configured` wins; without it, the host that the request itself was sent to."""

    configured: str | None

    def of(self, request: Request[Any, Any, Any]) -> str:
        """Return scheme and host without a slash at the end.

        Raises:
            RequestError: the Host header names no host that a link could lead to.
        """
        if self.configured is not None:
            return self.configured
        host = request.headers.get("host", "")
        named = _HOST.fullmatch(host)
        if named is None or int(named["port"] or 0) > _MAX_PORT:
            message = "Invalid host header; links need the name or address that you reached us by."
            raise RequestError(message)
        return f"{request.url.scheme}://{host}"

"""Where clients reach this server, for links in answers."""

from __future__ import annotations

import re
from typing import Any, Final

from litestar import Request

from gateway.errors import RequestError

_MAX_PORT: Final = 65_535
_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
)


def base_url_of(request: Request[Any, Any, Any]) -> str:
    """Return scheme and host, no slash at the end: the configured ones, or the request's own.

    Raises:
        RequestError: the Host header names no host that a link could lead to.
    """
    configured: str | None = request.app.state.public_base_url
    if configured is not None:
        return configured
    host = request.headers.get("host", "")
    named = _HOST.fullmatch(host)
    if named is None or int(named["port"] or 0) > _MAX_PORT:
        message = "Invalid host header; links need the name or address that you reached us by."
        raise RequestError(message)
    return f"{request.url.scheme}://{host}"

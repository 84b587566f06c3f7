"""Where clients reach this server, for links in answers."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request


class BaseUrl(msgspec.Struct, frozen=True):
    """`configured` wins; without it, the host that the request itself was sent to."""

    configured: str | None

    def of(self, request: Request[Any, Any, Any]) -> str:
        """Return scheme and host without a slash at the end."""
        return self.configured or str(request.base_url).rstrip("/")

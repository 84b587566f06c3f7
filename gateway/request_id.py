"""The id of a request: one per request, made by us, on every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from litestar.types import Scope

REQUEST_ID_HEADER: Final = "x-request-id"
_KEY: Final = "trident_request_id"


def request_id_of(scope: Scope) -> str:
    """Return the request's id; makes it on first use, which may be an error before routing."""
    state = scope.setdefault("state", {})
    if _KEY not in state:
        state[_KEY] = f"req_{uuid7().hex}"
    return str(state[_KEY])

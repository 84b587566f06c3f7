"""Who sent a request, as the services that make jobs want to know it."""

from __future__ import annotations

from typing import Any, Final

from litestar import Request
from opentelemetry import trace

from gateway.admission import Caller
from gateway.errors import RequestError
from gateway.request_id import request_id_of
from observability.tracing import traceparent_of

JOB_HEADER: Final = "x-job-id"
_MAX_KEY: Final = 255
_MAX_RETRIES: Final = 1000


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """Return the caller of a request that has passed authentication.

    Raises:
        RequestError: the Idempotency-Key is none.
    """
    return Caller(
        tenant=request.user.tenant,
        request_id=request_id_of(request.scope),
        traceparent=traceparent_of(trace.get_current_span()),
        route=request.scope["path_template"],
        idempotency_key=_key_of(request),
        retry_count=_retry_count_of(request),
    )


def _key_of(request: Request[Any, Any, Any]) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        message = f"Invalid Idempotency-Key header: use 1 to {_MAX_KEY} printable ASCII characters."
        raise RequestError(message, code="invalid_idempotency_key")
    return key


def _retry_count_of(request: Request[Any, Any, Any]) -> int | None:
    """Return how often an SDK has sent this before; its header is on first tries, too."""
    count = request.headers.get("x-stainless-retry-count", "")
    if not (count.isascii() and count.isdecimal() and len(count) <= len(str(_MAX_RETRIES))):
        return None
    return int(count)

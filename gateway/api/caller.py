"""Who sent a request, as the services that make jobs want to know it."""

from __future__ import annotations

from typing import Any

from litestar import Request
from opentelemetry import trace

from gateway.admission import Caller
from gateway.request_id import request_id_of
from observability.tracing import traceparent_of


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """Return the caller of a request that has passed authentication."""
    return Caller(
        tenant=request.user.tenant,
        request_id=request_id_of(request.scope),
        traceparent=traceparent_of(trace.get_current_span()),
    )

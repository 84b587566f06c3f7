"""What surrounds every request: its id, its span, its log line, its time.

Litestar runs middleware after routing. Answers made before that (404, 405) still pass the
`before_send` hook, which is therefore where headers are set.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import structlog
from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.routes import HTTPRoute
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from gateway.request_id import REQUEST_ID_HEADER, request_id_of
from observability.semconv import (
    ATTR_CLIENT_ADDRESS,
    ATTR_ERROR_TYPE,
    ATTR_HTTP_METHOD,
    ATTR_HTTP_ROUTE,
    ATTR_HTTP_STATUS,
    ATTR_REQUEST_ID,
    ATTR_URL_PATH,
    ATTR_URL_SCHEME,
    ATTR_USER_AGENT,
    HTTP_SCOPE,
)
from observability.tracing import context_of

if TYPE_CHECKING:
    from litestar.types import (
        ASGIApp,
        HTTPScope,
        Message,
        Receive,
        ReceiveMessage,
        Scope,
        Send,
    )
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

_MAX_CLIENT_ID: Final = 512
_MAX_DRAIN_BYTES: Final = 8 * 1024 * 1024
_MAX_DRAIN_S: Final = 5.0
_FIRST_ERROR: Final = 400
_FIRST_FAILURE: Final = 500
_UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked by those who watch us
_STARTED: Final = "trident_started_s"
_STATUS: Final = "trident_status"
_TRACE: Final = "trident_trace_id"
QUIET: Final = "quiet"  # handler opt: asked so often that a log line each would drown the rest

_log = structlog.get_logger(__name__)


async def stamp(message: Message, scope: Scope) -> None:
    """Put the headers that every answer carries on it; a `before_send` hook."""
    if message["type"] != "http.response.start":
        return
    state = scope["state"]
    state[_STATUS] = message["status"]
    headers = MutableScopeHeaders.from_message(message)
    headers[REQUEST_ID_HEADER] = request_id_of(scope)
    headers["openai-version"] = "2020-10-01"
    now_s = time.monotonic()
    taken_s = now_s - state.get(_STARTED, now_s)  # no time at all if it was not even routed
    headers["openai-processing-ms"] = str(round(taken_s * 1000))
    if _method(scope) == "OPTIONS" and "allow" in headers:
        # Of a path with several handlers, litestar's own answer names the methods of one.
        routes = (route for route in scope["litestar_app"].routes if isinstance(route, HTTPRoute))
        methods = {
            method
            for route in routes
            if route.path_format == scope["path_template"]
            for method in route.methods
        }
        headers["allow"] = ", ".join(sorted(methods))


class RequestLog(ASGIMiddleware):
    """Binds the request id to all logs of the request, and writes one line when it is over."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Run the request with its ids bound."""
        started_s = scope["state"][_STARTED] = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id_of(scope), tenant=None):
            try:
                await next_app(scope, receive, send)
            finally:
                write = _log.debug if scope["route_handler"].opt.get(QUIET) else _log.info
                write(
                    "request",
                    method=_method(scope),
                    route=scope["path_template"],
                    status=scope["state"].get(_STATUS),
                    duration_s=round(time.monotonic() - started_s, 4),
                    client_request_id=_client_request_id(scope),
                    trace_id=scope["state"].get(_TRACE),
                )


def _method(scope: Scope) -> str:
    # The middlewares here admit HTTP only, which the type of a middleware's scope cannot say.
    return cast("HTTPScope", scope)["method"]


def _client_request_id(scope: Scope) -> str | None:
    """Return the caller's own id for our log, or None if it is not what a header may hold."""
    value = Headers.from_scope(scope).get("x-client-request-id")
    if value is None or not value.isascii() or not value.isprintable():
        return None
    return value[:_MAX_CLIENT_ID]


class ServerSpans:
    """An ASGI app around all of ours, routing included: one server span per request.

    It is named after the route, since metrics by concrete paths are useless, and knows nothing of the
    query: signatures of links are secrets.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        """Take the tracer from `provider`."""
        self._app = app
        self._tracer = provider.get_tracer(HTTP_SCOPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request in a span that continues the caller's trace."""
        if scope["type"] != ScopeType.HTTP or scope["path"] in _UNTRACED:
            await self._app(scope, receive, send)
            return
        headers = Headers.from_scope(scope)
        with self._tracer.start_as_current_span(
            _method(scope),
            context=context_of(headers.get("traceparent"), headers.get("tracestate")),
            kind=SpanKind.SERVER,
            attributes=_asked(scope, headers),
        ) as span:
            if (context := span.get_span_context()).is_valid:
                scope["state"][_TRACE] = trace.format_trace_id(context.trace_id)
            try:
                await self._app(scope, receive, send)
            finally:
                _name(span, scope)


def _asked(scope: Scope, headers: Headers) -> dict[str, AttributeValue]:
    """Return what is known of a request when it comes."""
    client = scope["client"]
    known = {
        ATTR_HTTP_METHOD: _method(scope),
        ATTR_URL_SCHEME: scope["scheme"],
        ATTR_URL_PATH: scope["path"],
        ATTR_CLIENT_ADDRESS: client[0] if client else None,
        ATTR_USER_AGENT: headers.get("user-agent"),
        ATTR_REQUEST_ID: request_id_of(scope),
    }
    return {name: value for name, value in known.items() if value is not None}


def _name(span: Span, scope: Scope) -> None:
    """Tell a span what became of its request."""
    if route := scope.get("path_template"):
        span.update_name(f"{_method(scope)} {route}")
        span.set_attribute(ATTR_HTTP_ROUTE, route)
    if (status := scope["state"].get(_STATUS)) is not None:
        span.set_attribute(ATTR_HTTP_STATUS, status)
        if status >= _FIRST_FAILURE:
            span.set_attribute(ATTR_ERROR_TYPE, str(status))
            span.set_status(StatusCode.ERROR)


class DrainBody(ASGIMiddleware):
    """Reads what is left of a body before an error is answered.

    A server that answers and closes while the client still sends resets the connection, and the
    client never sees why it was refused. Bounded, because not everyone who sends is honest.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Watch how far the body has been read, and read on if the answer is an error."""
        unread = True

        async def watched() -> ReceiveMessage:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            left = _MAX_DRAIN_BYTES
            while unread and left > 0:
                message = await watched()
                left -= len(message.get("body", b"")) if message["type"] == "http.request" else 0

        async def after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= _FIRST_ERROR:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_MAX_DRAIN_S):
                        await drain()
            await send(message)

        await next_app(scope, watched, after_body)

"""How the app speaks HTTP, apart from its routes: CORS and server spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from litestar.config.cors import CORSConfig
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from opentelemetry.metrics import NoOpMeterProvider

from observability.semconv import QUERY_ATTRIBUTES

if TYPE_CHECKING:
    from litestar.types import Scope
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

MAX_JSON_BYTES: Final = 1024 * 1024
MAX_UPLOAD_BYTES: Final = 56 * 1024 * 1024  # a picture of 50 MB, a mask of 4 MB, and the texts
_CORS_METHODS: Final[list[Literal["GET", "HEAD", "POST", "DELETE"]]] = [
    "GET",
    "HEAD",
    "POST",
    "DELETE",
]
# By name: a wildcard does not cover Authorization, and browsers ask for each that the SDK sends.
_CORS_REQUEST_HEADERS: Final = (
    "authorization",
    "content-type",
    "idempotency-key",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "range",
    "traceparent",
    "x-client-request-id",
    "x-stainless-arch",
    "x-stainless-async",
    "x-stainless-custom-poll-interval",
    "x-stainless-helper-method",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-poll-helper",
    "x-stainless-read-timeout",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
)
_CORS_RESPONSE_HEADERS: Final = (
    "accept-ranges",
    "content-length",
    "content-range",
    "etag",
    "openai-poll-after-ms",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-job-id",
    "x-predicted-finish-ms",
    "x-request-id",
    "x-should-retry",
)


def cors(origins: Sequence[str]) -> CORSConfig | None:
    """Let pages of these origins call us; without any, no page may, which is the default.

    In open mode a page that may call us needs no key: any site could then use this machine.
    """
    if not origins:
        return None
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=list(_CORS_METHODS),
        allow_headers=list(_CORS_REQUEST_HEADERS),
        expose_headers=list(_CORS_RESPONSE_HEADERS),
        max_age=600,
    )


def server_spans(provider: TracerProvider) -> OpenTelemetryPlugin:
    """Make one span per request on our provider; `RouteSpan` names it after the route.

    The default name would be the concrete path, and HTTP metrics without a route are useless.
    """

    def method_only(scope: Scope) -> tuple[str, dict[str, Any]]:
        return str(scope.get("method", "WS")), {}

    config = OpenTelemetryConfig(
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        scope_span_details_extractor=method_only,
        server_request_hook_handler=_leave_out_query,
        exclude_spans=["send", "receive"],
        exclude=[
            r"^/healthz$",
            r"^/readyz$",
            r"^/metrics$",
        ],  # asked every second by those who watch us
    )
    return OpenTelemetryPlugin(config)


def _leave_out_query(span: Span, scope: Mapping[str, Any]) -> None:
    """Say the path alone, of unknown routes too: signatures of links are secrets."""
    for name in QUERY_ATTRIBUTES:
        span.set_attribute(name, scope["path"])

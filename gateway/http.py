"""How the app speaks HTTP, apart from its routes: CORS, and how large bodies may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from litestar.config.cors import CORSConfig

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
    "x-used-steps",
    "x-wished-steps",
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

"""Reading a JSON body: declared as JSON, small enough, strictly decoded, and documented.

Handlers ask for the result by dependency and not by litestar's `data`, whose decoding coerces
(`"2"` would pass for 2) and reports errors in words that clients of OpenAI do not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody

from gateway.errors import WrongMediaTypeError
from gateway.wire import decode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T", bound=msgspec.Struct)


def json_body(into: type[T]) -> Callable[[Request[Any, Any, Any]], Awaitable[T]]:
    """Return a dependency that reads the body into a struct."""

    async def read(request: Request[Any, Any, Any]) -> T:
        kind, _ = request.content_type
        # Also what keeps web pages from posting here: a browser asks before it sends JSON.
        if kind != "application/json":
            message = (
                f"Unsupported content type '{kind}'. Send the body as JSON with the header "
                "Content-Type: application/json."
            )
            raise WrongMediaTypeError(message, code="unsupported_content_type")
        return decode(await request.body(), into)

    return read


def takes(into: type[msgspec.Struct]) -> type[Operation]:
    """Return an operation class that shows `into` as the body in the OpenAPI document."""
    _, components = msgspec.json.schema_components([into])
    schema: Any = components[into.__name__]  # a plain dictionary serialises as it is
    content = {"application/json": OpenAPIMediaType(schema=schema)}

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(content=content, required=True)

    return Documented

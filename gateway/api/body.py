"""Reading bodies and queries: declared rightly, small enough, strictly decoded, and documented.

Handlers ask for the result by dependency and not by litestar's `data`, whose decoding coerces
(`"2"` would pass for 2) and reports errors in words that clients of OpenAI do not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, RequestBody

from gateway.api.form import form_fields
from gateway.errors import WrongMediaTypeError
from gateway.wire import decode, decode_texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T", bound=msgspec.Struct)

JSON: Final = "application/json"
FORM: Final = "multipart/form-data"


def json_body(into: type[T]) -> Callable[[Request[Any, Any, Any]], Awaitable[T]]:
    """Return a dependency that reads the body into a struct."""

    async def read(request: Request[Any, Any, Any]) -> T:
        kind, _ = request.content_type
        # Also what keeps web pages from posting here: a browser asks before it sends JSON.
        if kind != JSON:
            raise _wrong_type(kind, "as JSON with the header Content-Type: application/json")
        return decode(await request.body(), into)

    return read


def json_or_form_body(into: type[T]) -> Callable[[Request[Any, Any, Any]], Awaitable[T]]:
    """Return a dependency that reads the body, of either type, into a struct."""

    async def read(request: Request[Any, Any, Any]) -> T:
        kind, _ = request.content_type
        if kind == JSON:
            return decode(await request.body(), into)
        if kind == FORM:
            return decode_texts(await form_fields(request), into)
        raise _wrong_type(kind, "as multipart/form-data or application/json, and say so")

    return read


def query(into: type[T]) -> Callable[[Request[Any, Any, Any]], T]:
    """Return a dependency that reads the query into a struct; of a repeated name, the last."""

    def read(request: Request[Any, Any, Any]) -> T:
        return decode_texts(dict(request.query_params.multi_items()), into)

    return read


def _wrong_type(kind: str, advice: str) -> WrongMediaTypeError:
    message = f"Unsupported content type '{kind}'. Send the body {advice}."
    return WrongMediaTypeError(message, code="unsupported_content_type")


def takes(into: type[msgspec.Struct], *kinds: str) -> type[Operation]:
    """Return an operation class that shows `into` as the body in the OpenAPI document."""
    schema: Any = _schema_of(into)  # a plain dictionary serialises as it is
    content = {kind: OpenAPIMediaType(schema=schema) for kind in kinds or (JSON,)}

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(content=content, required=True)

    return Documented


def asks(into: type[msgspec.Struct]) -> type[Operation]:
    """Return an operation class that shows `into` as the query in the OpenAPI document."""
    schemas: dict[str, Any] = _schema_of(into)["properties"]

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            ours = [Parameter(name, "query", schema=schema) for name, schema in schemas.items()]
            self.parameters = [*(self.parameters or ()), *ours]

    return Documented


def _schema_of(into: type[msgspec.Struct]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components([into])
    schema: dict[str, Any] = components[into.__name__]
    return schema

"""Reading bodies and queries: declared rightly, small enough, strictly decoded, and documented.

Handlers ask for the result by dependency and not by litestar's `data`, whose decoding coerces
(`"2"` would pass for 2) and reports errors in words that clients of OpenAI do not know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from litestar import Request
from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    RequestBody,
    Schema,
)

from gateway.api.form import Form, read_form
from gateway.errors import RequestError, WrongMediaTypeError
from gateway.wire import decode, decode_texts

T = TypeVar("T", bound=msgspec.Struct)

JSON: Final = "application/json"
FORM: Final = "multipart/form-data"


class Submission(msgspec.Struct, Generic[T], frozen=True):
    """A body, and the files that came with it by the name of their part; JSON has none."""

    body: T
    files: Mapping[str, Sequence[bytes]]


def json_body(into: type[T]) -> Callable[[Request[Any, Any, Any]], Awaitable[T]]:
    """Return a dependency that reads the body into a struct."""

    async def read(request: Request[Any, Any, Any]) -> T:
        kind, _ = request.content_type
        # Also what keeps web pages from posting here: a browser asks before it sends JSON.
        if kind != JSON:
            raise _wrong_type(kind, "as JSON with the header Content-Type: application/json")
        return decode(await request.body(), into)

    return read


def form_body(
    into: type[T], *files: str, or_json: bool = False
) -> Callable[[Request[Any, Any, Any]], Awaitable[Submission[T]]]:
    """Return a dependency that reads a form, or with `or_json` a JSON body too.

    `files` are the parts that have to be files; in JSON their names mean what `into` says.
    """

    async def read(request: Request[Any, Any, Any]) -> Submission[T]:
        kind, _ = request.content_type
        if kind == JSON and or_json:
            return Submission(decode(await request.body(), into), {})
        if kind != FORM:
            advice = "as multipart/form-data" + (" or application/json" if or_json else "")
            raise _wrong_type(kind, f"{advice}, and say so")
        form = await read_form(request)
        _expect_kinds(form, files, into)
        return Submission(decode_texts(form.fields, into), form.files)

    return read


def _expect_kinds(form: Form, files: Sequence[str], into: type[msgspec.Struct]) -> None:
    """Refuse text where a file belongs, and a file where text does; unknown parts are ignored."""
    for name in files:
        if isinstance(form.fields.get(name), str | list):
            message = f"Invalid type for '{name}': expected a file, got text."
            raise RequestError(message, code="invalid_type", param=name)
    known = {field.encode_name for field in msgspec.structs.fields(into)}
    for name in form.files:
        if name in known and name not in files:
            message = f"Invalid type for '{name}': expected text, got a file."
            raise RequestError(message, code="invalid_type", param=name)


def query(into: type[T]) -> Callable[[Request[Any, Any, Any]], T]:
    """Return a dependency that reads the query into a struct; of a repeated name, the last."""

    def read(request: Request[Any, Any, Any]) -> T:
        return decode_texts(dict(request.query_params.multi_items()), into)

    return read


def _wrong_type(kind: str, advice: str) -> WrongMediaTypeError:
    message = f"Unsupported content type '{kind}'. Send the body {advice}."
    return WrongMediaTypeError(message, code="unsupported_content_type")


def takes(
    into: type[msgspec.Struct], *kinds: str, files: Sequence[str] = (), streams: bool = False
) -> type[Operation]:
    """Return an operation class that shows `into` as the body in the OpenAPI document.

    `files` are the parts of a form that are files; `streams` tells of events as an answer.
    """
    schema = _schema_of(into)
    form = {**schema, "properties": {**schema["properties"], **dict.fromkeys(files, _FILE)}}
    shown: dict[str, Any] = {JSON: schema, FORM: form}  # plain dictionaries serialise as they are
    content = {kind: OpenAPIMediaType(schema=shown[kind]) for kind in kinds or (JSON,)}

    @dataclass
    class Documented(Operation):
        def __post_init__(self) -> None:
            self.request_body = RequestBody(content=content, required=True)
            found = (self.responses or {}).get("200")
            if streams and isinstance(found, OpenAPIResponse) and found.content is not None:
                found.content["text/event-stream"] = OpenAPIMediaType(schema=Schema())

    return Documented


_FILE: Final = {"type": "string", "format": "binary"}


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
    """Return a struct's schema with the schemas that it refers to written out."""
    _, components = msgspec.json.schema_components([into], ref_template="{name}")
    schema: dict[str, Any] = _written_out(components[into.__name__], components)
    return schema


def _written_out(node: Any, components: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _written_out(components[node["$ref"]], components)
        return {key: _written_out(value, components) for key, value in node.items()}
    return [_written_out(item, components) for item in node] if isinstance(node, list) else node

"""The OpenAPI document at `/schema`: litestar's, with what every route has in common said rightly.

Litestar writes down its own error body for each route; ours is OpenAI's. Which routes answer with
files, and what those are, only the routes' paths tell.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from gateway.errors import ErrorBody

_METHODS: Final = {"get", "head", "post", "delete"}
_JSON: Final = "application/json"
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}
_FILE_TYPES: Final = ("video/mp4", "image/png", "image/jpeg", "image/webp")
_DOCUMENT: Final = "openapi_document"


def openapi(version: str) -> OpenAPIConfig:
    """Describe the API; no viewer, because viewers load from a CDN."""
    return OpenAPIConfig(
        title="TridentServe",
        version=version,
        description="OpenAI-compatible image and video generation.",
        path="/openapi",  # of litestar's own routes; ours is /schema
        render_plugins=[JsonRenderPlugin()],
    )


@get(
    ["/schema", "/openapi.json"],
    media_type=_JSON,
    include_in_schema=False,
    sync_to_thread=False,
)
def openapi_document(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Return the document; litestar's own route for it would answer every path beside it."""
    app: Litestar = request.app
    document: dict[str, Any] | None = app.state.get(_DOCUMENT)
    if document is None:
        document = app.state[_DOCUMENT] = _completed(app.openapi_schema.to_schema())
    return document


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    document = deepcopy(document)
    _, schemas = msgspec.json.schema_components(
        [ErrorBody], ref_template="#/components/schemas/{name}"
    )
    document["components"]["schemas"].update(schemas)
    for path, methods in document["paths"].items():
        for method in _METHODS & methods.keys():
            responses = methods[method]["responses"]
            if path.endswith("/content"):
                responses.update(_file_responses(has_body=method != "head"))
            _describe_errors(responses)
    return document


def _describe_errors(responses: dict[str, Any]) -> None:
    """Say that whatever is no success has OpenAI's envelope; litestar's 400 is not ours."""
    responses.pop("400", None)
    body = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
    responses["4XX"] = {"description": "The request cannot be answered.", "content": {_JSON: body}}
    responses["5XX"] = {"description": "The server could not answer.", "content": {_JSON: body}}


def _file_responses(*, has_body: bool) -> dict[str, Any]:
    content = {"content": dict.fromkeys(_FILE_TYPES, _FILE)} if has_body else {}
    return {
        "200": {"description": "The file.", **content},
        "206": {"description": "The part of it that Range asked for.", **content},
        "304": {"description": "The file that If-None-Match names is still the same."},
    }

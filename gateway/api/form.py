"""Reading multipart bodies: text parts as text, file parts as something that is no text.

A browser sends a form to any site without asking it first, unlike JSON. So a form from a page is
read only if the page is ours or its origin is one that the operator allows.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from litestar import Request
from litestar.datastructures import UploadFile
from litestar.exceptions import HTTPException

from gateway.errors import BodyTooLargeError, ForbiddenError, RequestError


async def form_fields(request: Request[Any, Any, Any]) -> dict[str, object]:
    """Return parts by name; `name[key]` and `name[]` count as `name`.

    A part that comes once is a string, or an empty object for a file; more of them are a list.

    Raises:
        RequestError: the body is no form.
        ForbiddenError: a page of another origin sent it.
    """
    _refuse_strange_pages(request)
    fields: dict[str, list[object]] = {}
    for name, value in await _parts(request):
        text = value if isinstance(value, str) else {}
        fields.setdefault(name.partition("[")[0], []).append(text)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


async def _parts(request: Request[Any, Any, Any]) -> list[tuple[str, object]]:
    try:
        parts = list((await request.form()).multi_items())
    except HTTPException as error:
        if error.status_code == BodyTooLargeError.status:
            raise
        raise _unreadable() from error
    except (UnicodeDecodeError, LookupError) as error:  # a part's bytes, or the charset it claims
        raise _unreadable() from error
    for _, value in parts:
        if isinstance(value, UploadFile):
            await value.close()
    return parts


def _unreadable() -> RequestError:
    message = (
        "We could not parse the multipart body of your request. The API expects parts in UTF-8, "
        "each with a name, between the boundaries that the Content-Type header declares."
    )
    return RequestError(message)


def _refuse_strange_pages(request: Request[Any, Any, Any]) -> None:
    origin = request.headers.get("origin")
    if origin is None or urlsplit(origin).netloc == request.headers.get("host"):
        return
    cors = request.app.cors_config
    if cors is None or not cors.is_origin_allowed(origin):
        message = (
            f"Pages of {origin} may not send forms here. The operator can allow them with "
            "TRIDENT_CORS_ORIGINS."
        )
        raise ForbiddenError(message, code="origin_not_allowed")

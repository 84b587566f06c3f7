"""Reading multipart bodies: text parts as fields, file parts as bytes.

A browser sends a form to any site without asking it first, unlike JSON. So a form from a page is
read only if the page is ours or its origin is one that the operator allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from litestar import Request
from litestar.datastructures import UploadFile
from litestar.exceptions import HTTPException

from gateway.errors import BodyTooLargeError, ForbiddenError, RequestError

MAX_TEXT_BYTES: Final = 256 * 1024  # a prompt of 32,000 characters, four bytes each, and room
_NAME: Final = re.compile(r"(?P<name>[^\[\]]*)(?:\[(?P<key>[^\[\]]*)\])?.*", re.DOTALL)


class Form(msgspec.Struct, frozen=True):
    """A form's text fields and files, by name; `name[]` and `name[0]` count as `name`.

    A text that comes once is a string, more of them are a list, and `name[key]` is an object.
    """

    fields: Mapping[str, object]
    files: Mapping[str, Sequence[bytes]]


async def read_form(request: Request[Any, Any, Any]) -> Form:
    """Read a form.

    Raises:
        RequestError: the body is no form.
        BodyTooLargeError: it is larger than the route takes, or its texts are.
        ForbiddenError: a page of another origin sent it.
    """
    _refuse_strange_pages(request)
    texts: dict[str, list[object]] = {}
    files: dict[str, list[bytes]] = {}
    length = 0
    for part, value in await _parts(request):
        name, key = _split(part)
        if isinstance(value, bytes):
            files.setdefault(name, []).append(value)
        else:
            length += len(value)
            found = texts.setdefault(name, [])
            found.append({key: value} if key else value)
    if length > MAX_TEXT_BYTES:
        message = f"The text of the form is longer than {MAX_TEXT_BYTES} characters."
        raise BodyTooLargeError(message, code="request_too_large")
    return Form({name: _joined(values) for name, values in texts.items()}, files)


def _split(part: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(part)
    assert match is not None  # it matches everything
    key = match["key"]
    return match["name"], key if key and not key.isdecimal() else None


def _joined(values: Sequence[object]) -> object:
    if all(isinstance(value, dict) for value in values):
        return {k: v for value in values if isinstance(value, dict) for k, v in value.items()}
    return values[0] if len(values) == 1 else list(values)


async def _parts(request: Request[Any, Any, Any]) -> list[tuple[str, str | bytes]]:
    try:
        parts = list((await request.form()).multi_items())
    except HTTPException as error:
        if error.status_code == BodyTooLargeError.status:
            raise
        raise _unreadable() from error
    except (UnicodeDecodeError, LookupError, ValueError) as error:  # bytes, or their charset
        raise _unreadable() from error
    return [(name, await _content(value)) for name, value in parts]


async def _content(value: object) -> str | bytes:
    if not isinstance(value, UploadFile):
        return str(value)
    try:
        return await value.read()
    finally:
        await value.close()


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

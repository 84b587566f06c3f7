"""Pictures that a body refers to instead of carrying them."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from gateway.errors import RequestError
from gateway.schemas.images import ImageReference

_DATA_URL: Final = "data:"


def referred(reference: ImageReference, param: str) -> bytes:
    """Return the bytes of a `data:` URL; nothing is fetched on a caller's behalf."""
    url = reference.image_url
    if url is None or not url.startswith(_DATA_URL):
        message = (
            f"Invalid value for '{param}': only data: URLs are taken here, no links and no files. "
            "Send the image's bytes."
        )
        raise RequestError(message, code="invalid_value", param=param)
    head, comma, content = url.partition(",")
    message = f"Invalid value for '{param}': this is no data: URL with base64 content."
    if not comma or not head.endswith(";base64"):
        raise RequestError(message, code="invalid_value", param=param)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(message, code="invalid_value", param=param) from error

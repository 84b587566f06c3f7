"""Byte ranges of RFC 9110, as far as players and download tools use them: one range at a time.

Several ranges, other units and malformed headers are ignored, as the RFC asks: the whole file is
a correct answer to them.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


class ByteSpan(msgspec.Struct, frozen=True):
    """Bytes from `start` up to, but not including, `end`."""

    start: int
    end: int

    def content_range(self, size_bytes: int) -> str:
        """Return the Content-Range value; there, the end is included."""
        return f"bytes {self.start}-{self.end - 1}/{size_bytes}"


class UnsatisfiableError(ValueError):
    """The range begins behind the file's end, or asks for its last 0 bytes."""


def span_of(header: str | None, size_bytes: int) -> ByteSpan | None:
    """Return what a Range header asks for; None means the whole file.

    Raises:
        UnsatisfiableError: no byte of the file is in the range.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        span = ByteSpan(max(0, size_bytes - int(match[2])), size_bytes)
    elif match[2] and int(match[2]) < int(match[1]):
        return None
    else:
        end = int(match[2]) + 1 if match[2] else size_bytes
        span = ByteSpan(int(match[1]), min(size_bytes, end))
    if span.start >= span.end:
        message = f"No byte of {size_bytes} is in the range {header!r}."
        raise UnsatisfiableError(message)
    return span

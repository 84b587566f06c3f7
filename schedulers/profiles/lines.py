"""The line of a JSON text on which a field stands.

A field is written as in errors: `models["sd3"].stages["diffuse"].entries[3].duration_s`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_DECODER = json.JSONDecoder()
_STEP = re.compile(r'\[(?P<index>\d+)\]|\[(?P<key>"(?:[^"\\]|\\.)*")\]|\.?(?P<name>\w+)')
_BLANK = re.compile(r"[ \t\r\n]*")


def line_of(text: str, field: str) -> int:
    """Return the line, from 1, of a field or of the innermost object that should have it.

    Args:
        text: valid JSON.
        field: steps from the top level on.
    """
    found = value = _past_blanks(text, 0)
    for step in _STEP.finditer(field):
        place = _place(text, value, _name_of(step))
        if place is None:
            break
        found, value = place
    return text.count("\n", 0, found) + 1


def _name_of(step: re.Match[str]) -> str | int:
    if step["index"] is not None:
        return int(step["index"])
    name: str = step["name"] if step["key"] is None else json.loads(step["key"])
    return name


def _place(text: str, at: int, name: str | int) -> tuple[int, int] | None:
    """Return where a member of the value at `at` begins, and where its own value does."""
    return next(
        ((begin, value) for found, begin, value in _members(text, at) if found == name), None
    )


def _members(text: str, at: int) -> Iterator[tuple[str | int, int, int]]:
    """Yield key or index, the place of the member and of its value."""
    opening, index = text[at], 0
    if opening not in "{[":
        return
    at = _past_blanks(text, at + 1)
    while text[at] not in "}]":
        name: str | int = index
        begin = at
        if opening == "{":
            name, at = _DECODER.raw_decode(text, at)
            at = _past_blanks(text, _past_blanks(text, at) + 1)  # past the colon
        yield name, begin, at
        _, at = _DECODER.raw_decode(text, at)
        at = _past_blanks(text, at)
        at = _past_blanks(text, at + 1) if text[at] == "," else at
        index += 1


def _past_blanks(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()

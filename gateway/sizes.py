"""Byte sizes as people write them: `512MiB`, `24GiB`, `8G`."""

from __future__ import annotations

import re
from typing import Final

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Return the bytes that `text` names.

    `MiB` and a bare `M` are powers of 1024, as memory is sold; `MB` is a power of 1000.

    Raises:
        ValueError: `text` is no positive size; the message is a sentence for the operator.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        message = f"{text!r} is not a size; write a number and a unit, such as 512MiB, 24GiB or 8G."
        raise ValueError(message)
    number, unit, binary = match.groups()
    decimal = not binary and bool(unit) and text.strip().upper().endswith("B")
    size_bytes = int(float(number) * (1000 if decimal else 1024) ** _POWERS[unit.upper()])
    if size_bytes < 1:
        message = f"Size {text!r} is zero bytes; give at least one, such as 512MiB."
        raise ValueError(message)
    return size_bytes

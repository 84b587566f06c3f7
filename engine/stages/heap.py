"""The heap of a worker: kept between launches, given back when weights come or go.

Workers are started with allocator settings that keep what a step frees for the next one
(`engine.executors.slot`). What they keep is at most what their largest launch needed, which the
memory ledger books as activations; when weights move, other memory is wanted instead.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """Return glibc's `malloc_trim`; None where there is another allocator."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def give_back() -> None:
    """Return to the system what this process has freed; what runs meanwhile pays for new pages."""
    if (trim := _trim()) is not None:
        trim(0)

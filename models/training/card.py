"""The model card's measured part: only the commands that measure write between its markers."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def replace_part(card: Path, part: str, text: str) -> None:
    """Put text between `<!-- part: begin -->` and `<!-- part: end -->`, where both are.

    A folder without a card is left without one.
    """
    if not card.exists():
        return
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    before, found_begin, rest = card.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{card} lacks the markers {begin} and {end}; add them and run again")
    card.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    """Where and with what a measurement was made, in one sentence."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    day = datetime.now(UTC).date().isoformat()
    return f"{day}, {_processor()}, {os.cpu_count()} shared cores, {packages}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a path of ours
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

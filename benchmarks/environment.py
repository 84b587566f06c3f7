"""What a reader needs to compare the figures of two runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """Return when and where a benchmark runs, how busy the machine is, and with which packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "packages": {name: version(name) for name in packages},
    }

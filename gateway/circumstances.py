"""What measured figures depend on besides what was measured: the machine, versions, the models."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.fingerprint import fingerprint

if TYPE_CHECKING:
    from engine import PipelineSpec

_PACKAGES: Final = ("tridentserve", "torch", "diffusers", "transformers")


def fingerprints(specs: Sequence[PipelineSpec]) -> dict[str, str]:
    """Return which version of each model its folder holds."""
    return {str(spec.id): fingerprint(Path(spec.folder)) for spec in specs}


def machine(device: str) -> str:
    """Return what the figures are of: processor, cores and system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass
    return f"{device} on {name}, {os.cpu_count()} cores, {platform.platform()}"


def versions() -> dict[str, str]:
    """Return the versions that figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

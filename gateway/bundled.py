"""Which models a process of this machine serves: those that were named, or those that ship."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.machine import need_engine, need_gpus, need_memory
from gateway.refusal import RefusalError
from gateway.runner import capacity_bytes, open_models

if TYPE_CHECKING:
    from engine import PipelineSpec
    from gateway.settings import Settings

BUNDLED: Final = ("shapes", "shapes-128", "shapes-256", "motion", "motion-128")


def open_served(settings: Settings) -> tuple[PipelineSpec, ...]:
    """Open the models of a process that runs jobs, and see that it could run them.

    Raises:
        PipelineError: a model folder cannot be served.
        RefusalError: something is missing on this machine.
    """
    if settings.role == "gateway":
        return ()
    folders = settings.models or bundled_models()
    os.environ["TRIDENT_MODEL"] = os.pathsep.join(map(str, folders))
    specs = open_models(folders, device=settings.device)
    need_memory(capacity_bytes(settings), specs)
    if settings.devices:
        need_engine()
        need_gpus(settings.device, settings.devices)
    return specs


def bundled_models() -> tuple[Path, ...]:
    """Return the folders of the models that ship with the project.

    Raises:
        RefusalError: this installation holds none.
    """
    package = Path(__file__).resolve().parent
    for root in (package.parent / "models", package / "bundled"):
        folders = (root / name for name in BUNDLED)
        found = tuple(folder for folder in folders if (folder / "model_index.json").is_file())
        if found:
            return found
    message = (
        "No model to serve: none ships with this installation. Name one with --model PATH, or "
        "make one to try things with: trident model new my-model."
    )
    raise RefusalError(message)

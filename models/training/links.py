"""Let one pipeline folder share parts of another through relative links.

Git keeps the links; whoever copies a folder, as the wheel does, gets the files.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def link_parts(folder: Path, source: Path, parts: Iterable[str]) -> None:
    """Let `folder` have these parts of `source`; its own of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        link = folder / part
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(source / part, folder), target_is_directory=True)

"""Which version of a model a folder holds, as far as speed and memory depend on it.

Configurations count with their content, weights with their names, shapes and number formats, but
not with their numbers: two trainings of one architecture cost the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_LENGTH_BYTES = 8  # of a safetensors header, before it


def fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits; the same for every copy of a folder.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.json")):
        _add(digest, folder, path, path.read_bytes())
    for path in sorted(folder.rglob("*.safetensors")):
        _add(digest, folder, path, _header(path))
    return digest.hexdigest()[:16]


def _add(digest: hashlib._Hash, folder: Path, path: Path, content: bytes) -> None:
    for part in (path.relative_to(folder).as_posix().encode(), content):
        digest.update(len(part).to_bytes(_LENGTH_BYTES, "little"))
        digest.update(part)


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little"))

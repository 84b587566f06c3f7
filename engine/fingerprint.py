"""Which version of a model a folder holds, as far as speed and memory depend on it.

Configurations count with their content, weights with their names, shapes and number formats, but
not with their numbers: two trainings of one architecture cost the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_LENGTH_BYTES = 8  # of a safetensors header, before it
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of each file's numbers


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


def identity(folder: Path) -> str:
    """Return 16 hexadecimal digits that only copies of the same weights have in common.

    Beside what `fingerprint` reads, some of the numbers count: a few thousand of every file. That
    tells two trainings apart in milliseconds, where reading everything would take minutes.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(fingerprint(folder).encode())
    for path in sorted(folder.rglob("*.safetensors")):
        _add(digest, folder, path, _samples(path))
    return digest.hexdigest()[:16]


def _samples(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        taken = [size.to_bytes(_LENGTH_BYTES, "little")]
        for place in range(_SAMPLES):
            file.seek(size * place // _SAMPLES)
            taken.append(file.read(_SAMPLE_BYTES))
    return b"".join(taken)

"""The files that a request begins with, as one hand-off that its image encode reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from engine.errors import InvalidRequestError

if TYPE_CHECKING:
    from engine.types import Source

Files: TypeAlias = Mapping[str, bytes]  # by the names that the source gives them


def packed(source: Source, files: Files) -> bytes:
    """Return a source's files as byte tensors `image` and `mask` of one safetensors file.

    Raises:
        InvalidRequestError: a file is missing (param `image` or `mask`).
    """
    import numpy as np  # noqa: PLC0415 - only where workers are started, as the next one
    from safetensors.numpy import save  # noqa: PLC0415

    names = {"image": source.image, "mask": source.mask}
    for role, name in names.items():
        if name is not None and name not in files:
            message = f"The file {name} of the request's source is not there; send it again."
            raise InvalidRequestError(message, param=role)
    wanted = {role: files[name] for role, name in names.items() if name is not None}
    content: bytes = save({role: np.frombuffer(file, np.uint8) for role, file in wanted.items()})
    return content

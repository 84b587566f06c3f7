"""Answering with a file, for whoever plays or downloads it: ETag, ranges, HEAD."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response

from gateway.artifacts import ArtifactService
from gateway.jobs.record import StoredArtifact


async def content_response(
    request: Request[Any, Any, Any],
    artifact: StoredArtifact,
    artifacts: ArtifactService,
    *,
    name: str,
    cache_control: str,
) -> Response[bytes]:
    """Return a file, the range of it that was asked for, or word that the client has it.

    Raises:
        RangeError: the range lies outside the file.
        MissingError: somebody removed the bytes.
    """
    etag = f'"{artifact.sha256}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": etag,
        "cache-control": cache_control,
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }
    if request.headers.get("if-none-match") == etag:
        return Response(b"", status_code=304, headers=headers)
    # A range of a version that we do not have is no range.
    wanted = request.headers.get("range") if request.headers.get("if-range", etag) == etag else None
    part = await artifacts.read(artifact, wanted)
    if part.span is not None:
        headers["content-range"] = part.span.content_range(artifact.size_bytes)
    return Response(
        part.content,
        status_code=200 if part.span is None else 206,
        media_type=artifact.media_type,
        headers=headers,
    )

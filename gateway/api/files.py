"""`GET /v1/files/{id}/content`: artifacts by signed link, without a key."""

from __future__ import annotations

from typing import Any, Final

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from gateway.artifacts import ArtifactService
from gateway.auth.authenticate import PUBLIC
from gateway.jobs.record import ArtifactId, StoredArtifact
from gateway.storage.signing import SignedLink

_MAX_DIGITS: Final = 12


class FileController(Controller):
    """Finished files."""

    path = "/files"
    tags = ("files",)
    opt = {PUBLIC: True}  # noqa: RUF012 - litestar reads it from the class

    @get("/{artifact_id:str}/content", media_type="application/octet-stream")
    async def content(
        self,
        request: Request[Any, Any, Any],
        artifact_id: FromPath[str],
        artifacts: NamedDependency[ArtifactService],
        expires: FromQuery[str] = "",
        signature: FromQuery[str] = "",
    ) -> Response[bytes]:
        """Return the bytes of an artifact."""
        link = _link_of(artifact_id, expires, signature)
        artifact = await artifacts.follow(link)
        headers = _headers(artifact, max_age_s=artifacts.seconds_left(link))
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(b"", status_code=304, headers=headers)
        content = await artifacts.content(artifact)
        return Response(content, media_type=artifact.media_type, headers=headers)


def _link_of(artifact_id: str, expires: str, signature: str) -> SignedLink:
    """Read a link leniently: what is malformed cannot have a valid signature."""
    is_time = expires.isascii() and expires.isdecimal() and len(expires) <= _MAX_DIGITS
    return SignedLink(ArtifactId(artifact_id), int(expires) if is_time else 0, signature)


def _headers(artifact: StoredArtifact, *, max_age_s: int) -> dict[str, str]:
    name = artifact.blob.rpartition("/")[2]
    return {
        "etag": f'"{artifact.sha256}"',
        "cache-control": f"private, max-age={max_age_s}, immutable",
        "content-disposition": f'inline; filename="{name}"',
        "x-content-type-options": "nosniff",
    }

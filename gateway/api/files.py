"""`GET /v1/files/{id}/content`: artifacts by signed link, without a key."""

from __future__ import annotations

from typing import Any, Final

from litestar import Controller, HttpMethod, Request, Response, route
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from gateway.api.content import content_response
from gateway.artifacts import ArtifactService
from gateway.auth.authenticate import PUBLIC
from gateway.jobs.record import ArtifactId
from gateway.storage.signing import SignedLink

_MAX_DIGITS: Final = 12


class FileController(Controller):
    """Finished files."""

    path = "/files"
    tags = ("files",)
    opt = {PUBLIC: True}  # noqa: RUF012 - litestar reads it from the class

    @route(
        "/{artifact_id:str}/content",
        http_method=[HttpMethod.GET, HttpMethod.HEAD],
        status_code=200,
        media_type="application/octet-stream",
    )
    async def content(
        self,
        request: Request[Any, Any, Any],
        artifact_id: FromPath[str],
        artifacts: NamedDependency[ArtifactService],
        expires: FromQuery[str] = "",
        signature: FromQuery[str] = "",
    ) -> Response[bytes]:
        """Return the bytes of an artifact, or a range of them."""
        link = _link_of(artifact_id, expires, signature)
        artifact = await artifacts.follow(link)
        return await content_response(
            request,
            artifact,
            artifacts,
            name=artifact.blob.rpartition("/")[2],
            cache_control=f"private, max-age={artifacts.seconds_left(link)}, immutable",
        )


def _link_of(artifact_id: str, expires: str, signature: str) -> SignedLink:
    """Read a link leniently: what is malformed cannot have a valid signature."""
    is_time = expires.isascii() and expires.isdecimal() and len(expires) <= _MAX_DIGITS
    return SignedLink(ArtifactId(artifact_id), int(expires) if is_time else 0, signature)

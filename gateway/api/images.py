"""`POST /v1/images/generations`: a job like any other, with a caller who waits for it."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency, Provide
from litestar.types import Receive

from gateway.api.base_url import BaseUrl
from gateway.api.body import json_body, takes
from gateway.api.caller import JOB_HEADER, caller_of
from gateway.images import ImageService
from gateway.schemas.images import ImageGenerationBody, ImagesResponse
from gateway.translate import images_response, server_timing


async def disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection; the body must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


class ImageController(Controller):
    """Images."""

    path = "/images"
    tags = ("images",)

    @post(
        "/generations",
        status_code=200,
        operation_class=takes(ImageGenerationBody),
        dependencies={"wanted": Provide(json_body(ImageGenerationBody))},
    )
    async def generate(
        self,
        request: Request[Any, Any, Any],
        wanted: NamedDependency[ImageGenerationBody],
        images: NamedDependency[ImageService],
        base_url: NamedDependency[BaseUrl],
    ) -> Response[ImagesResponse]:
        """Create images from a prompt."""
        caller = caller_of(request)
        job = await images.admit(wanted, caller)
        job = await images.follow(job, caller, caller_left=disconnect(request.receive))
        as_links = wanted.response_format == "url"
        data = images.link(job, base_url.of(request)) if as_links else await images.embed(job)
        return Response(
            images_response(job, wanted, data),
            headers={"server-timing": server_timing(job), JOB_HEADER: job.id},
        )

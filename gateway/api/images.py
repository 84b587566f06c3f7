"""`/v1/images`: jobs like any others, with a caller who waits for them or watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency
from litestar.types import Receive

from gateway.api.base_url import base_url_of
from gateway.api.body import FORM, JSON, Submission, form_body, json_body, takes
from gateway.api.caller import JOB_HEADER, caller_of
from gateway.api.degraded import degraded_headers
from gateway.api.references import referred
from gateway.api.sse import event_stream
from gateway.errors import RequestError
from gateway.http import MAX_UPLOAD_BYTES
from gateway.images import ImageService
from gateway.jobs.record import Job
from gateway.schemas.images import (
    ImageEditBody,
    ImageFields,
    ImageGenerationBody,
    ImagesResponse,
    ImageVariationBody,
)
from gateway.server_timing import HEADER as TIMING_HEADER
from gateway.server_timing import server_timing
from gateway.translate import images_response
from gateway.uploads import Picture, checked
from gateway.wire import missing_parameter

# Called by the handlers, not injected: litestar resolves several dependencies in a task each.
_generation: Final = json_body(ImageGenerationBody)
_edit: Final = form_body(ImageEditBody, "image", "mask", "markup", or_json=True)
_variation: Final = form_body(ImageVariationBody, "image")


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
        operation_class=takes(ImageGenerationBody, streams=True),
    )
    async def generate(
        self,
        request: Request[Any, Any, Any],
        images: NamedDependency[ImageService],
    ) -> Response[ImagesResponse]:
        """Create images from a prompt."""
        wanted = await _generation(request)
        job = await images.admit(wanted, caller_of(request))
        return await _answer(request, job, wanted, images, "image_generation")

    @post(
        "/edits",
        status_code=200,
        operation_class=takes(ImageEditBody, FORM, JSON, files=("image", "mask"), streams=True),
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def edit(
        self,
        request: Request[Any, Any, Any],
        images: NamedDependency[ImageService],
    ) -> Response[ImagesResponse]:
        """Change an image as a prompt says, or only what a mask leaves open."""
        sent = await _edit(request)
        wanted = sent.body
        if wanted.prompt is None:
            raise missing_parameter("prompt")
        if sent.files.get("markup"):
            message = "Unknown parameter: 'markup'. No model served here has it; use 'mask'."
            raise RequestError(message, code="unknown_parameter", param="markup")
        picture, mask = _pictures(sent)
        job = await images.admit_edit(wanted, picture, mask, caller_of(request))
        return await _answer(request, job, wanted, images, "image_edit")

    @post(
        "/variations",
        status_code=200,
        operation_class=takes(ImageVariationBody, FORM, files=("image",), streams=True),
        request_max_body_size=MAX_UPLOAD_BYTES,
    )
    async def vary(
        self,
        request: Request[Any, Any, Any],
        images: NamedDependency[ImageService],
    ) -> Response[ImagesResponse]:
        """Create images that are like one."""
        sent = await _variation(request)
        picture = _only(sent.files.get("image", ()))
        job = await images.admit_edit(sent.body, picture, None, caller_of(request))
        return await _answer(request, job, sent.body, images, "image_variation")


async def _answer(
    request: Request[Any, Any, Any],
    job: Job,
    wanted: ImageFields,
    images: ImageService,
    prefix: str,
) -> Response[Any]:
    if wanted.stream:
        events = images.stream(job, wanted, caller_of(request), prefix=prefix)
        return event_stream(request, events, job)
    caller = caller_of(request)
    done = await images.follow(job, caller, caller_left=disconnect(request.receive))
    job, as_links = done.job, wanted.response_format == "url"
    data = images.link(job, base_url_of(request)) if as_links else await images.embed(done)
    return Response(
        images_response(job, wanted, data),
        headers={
            TIMING_HEADER: server_timing(job),
            JOB_HEADER: job.id,
            **degraded_headers(job),
        },
    )


def _pictures(sent: Submission[ImageEditBody]) -> tuple[Picture, Picture | None]:
    """Return the picture to change and the mask, out of a form's files or a body's references."""
    body, files = sent.body, sent.files
    images = list(files.get("image", ()))
    images += [referred(ref, f"images[{i}]") for i, ref in enumerate(body.images or ())]
    masks = list(files.get("mask", ()))
    masks += [] if body.mask is None else [referred(body.mask, "mask")]
    if len(masks) > 1:
        raise RequestError("There can only be one 'mask'.", code="invalid_value", param="mask")
    return _only(images), (checked(masks[0], "mask") if masks else None)


def _only(images: Sequence[bytes]) -> Picture:
    if not images:
        raise missing_parameter("image")
    if len(images) > 1:
        message = f"Invalid 'image': the models served here take one image, not {len(images)}."
        raise RequestError(message, code="array_above_max_length", param="image")
    return checked(images[0], "image")

"""Bodies of `POST /v1/images/generations`, field by field as OpenAI has them.

Null means the default, everywhere. Fields that are not listed are ignored. Fields typed `AnyValue`
are known to upstream but to none of our models; a value in them is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

MAX_PROMPT: Final = 32_000
MAX_IMAGES: Final = 10
MAX_GUIDANCE: Final = 30.0
MAX_DEADLINE_MS: Final = 7 * 86_400_000
# The largest integer that every JSON client keeps exactly.
MAX_SEED: Final = 2**53 - 1

AnyValue = Any  # whatever it is, it is refused
Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT)]
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
ResolvedQuality = Literal["low", "medium", "high"]
OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]


class ImageGenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """A request for images. `seed` and the four after it are extensions of ours."""

    prompt: Prompt | None = None
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = None
    quality: Quality | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["auto", "low"] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] | None = None
    negative_prompt: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)] | None = None
    num_inference_steps: Annotated[int, msgspec.Meta(ge=1)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_GUIDANCE)] | None = None
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)] | None = None
    style: AnyValue = None
    complexity: AnyValue = None
    svg: AnyValue = None
    frame_count: AnyValue = None
    frame_duration_ms: AnyValue = None


UNSUPPORTED: Final = ("style", "complexity", "svg", "frame_count", "frame_duration_ms")


class InputTokens(msgspec.Struct, frozen=True):
    """What of `input_tokens` was text and what was images."""

    text_tokens: int
    image_tokens: int


class OutputTokens(msgspec.Struct, frozen=True):
    """What of `output_tokens` was images and what was text."""

    image_tokens: int
    text_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Sums that agree with their details.

    A text token is a whitespace-separated word of the prompt; an image token is 16x16 pixels,
    rounded up per image. They measure the work, not some other model's tokenizer.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    output_tokens_details: OutputTokens


class Image(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image: exactly one of the two is there."""

    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer; all values are resolved, never `auto`. `seed` is an extension of ours."""

    created: int
    data: tuple[Image, ...]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: ResolvedQuality
    size: str
    usage: Usage
    seed: int
    safety_identifier: str | None = None

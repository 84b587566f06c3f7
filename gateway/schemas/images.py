"""Bodies of `/v1/images/*`, field by field as OpenAI has them.

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
MAX_PREVIEWS: Final = 3
MAX_SOURCES: Final = 16
MAX_PRIORITY: Final = 9
# The largest integer that every JSON client keeps exactly.
MAX_SEED: Final = 2**53 - 1

AnyValue = Any  # whatever it is, it is refused
Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT)]
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
ResolvedQuality = Literal["low", "medium", "high"]
OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]
SloClass = Literal["interactive", "standard", "relaxed"]


class Extensions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What we take besides OpenAI's fields, on every route that makes something.

    Written out (for the fingerprint of a request) without what was not said, so that a body stays
    equal to itself when a later version knows more fields.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] | None = None
    negative_prompt: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)] | None = None
    num_inference_steps: Annotated[int, msgspec.Meta(ge=1)] | None = None
    min_inference_steps: Annotated[int, msgspec.Meta(ge=1)] | None = None
    guidance_scale: Annotated[float, msgspec.Meta(ge=0, le=MAX_GUIDANCE)] | None = None
    slo_class: SloClass | None = None
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)] | None = None


class ImageFields(Extensions, frozen=True, kw_only=True):
    """What all image routes take."""

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
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=MAX_PREVIEWS)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    complexity: AnyValue = None
    svg: AnyValue = None
    frame_count: AnyValue = None
    frame_duration_ms: AnyValue = None


class ImageGenerationBody(ImageFields, frozen=True, kw_only=True):
    """A request for images from a prompt."""

    prompt: Prompt | None = None
    style: Literal["vivid", "natural"] | None = None


class ImageReference(msgspec.Struct, frozen=True, kw_only=True):
    """A picture in a JSON body: a `data:` URL. Links and files are refused by name."""

    image_url: str | None = None
    file_id: str | None = None


class ImageEditBody(ImageFields, frozen=True, kw_only=True):
    """A request to change a picture; in a form the pictures are files `image` and `mask`.

    `strength` is an extension of ours: how much is painted anew.
    """

    prompt: Prompt | None = None
    images: Annotated[list[ImageReference], msgspec.Meta(max_length=MAX_SOURCES)] | None = None
    mask: ImageReference | None = None
    input_fidelity: Literal["high", "low"] | None = None
    strength: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    markup: AnyValue = None


class ImageVariationBody(ImageFields, frozen=True, kw_only=True):
    """A request for pictures like one that comes as the file `image`; `strength` is ours."""

    prompt: Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)] | None = None
    strength: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None


UNSUPPORTED: Final = ("complexity", "svg", "frame_count", "frame_duration_ms", "markup")


class InputTokens(msgspec.Struct, frozen=True):
    """What of `input_tokens` was text and what was images."""

    text_tokens: int
    image_tokens: int


class OutputTokens(msgspec.Struct, frozen=True):
    """What of `output_tokens` was images and what was text."""

    image_tokens: int
    text_tokens: int


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sums that agree with their details; events of a stream have no output details.

    A text token is a whitespace-separated word of the prompt; an image token is 16x16 pixels,
    rounded up per image. They measure the work, not some other model's tokenizer.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokens
    output_tokens_details: OutputTokens | None = None


class DegradedSteps(msgspec.Struct, frozen=True):
    """That fewer denoise steps were done than wished, as `min_inference_steps` allowed.

    An extension of ours, like what it answers.
    """

    wished_steps: int
    used_steps: int


class Image(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image: exactly one of the two is there."""

    b64_json: str | None = None
    url: str | None = None


class ImagesResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer; all values are resolved, never `auto`.

    `seed` and `degraded` are extensions of ours; the latter is there only if it says something.
    """

    created: int
    data: tuple[Image, ...]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: ResolvedQuality
    size: str
    usage: Usage
    seed: int
    safety_identifier: str | None = None
    degraded: DegradedSteps | None = None


class ImageEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a stream: a partial image, or a finished one with `usage`.

    `image_index` (of `n`), `seed` and `degraded` are extensions of ours.
    """

    type: str
    b64_json: str
    created_at: int
    size: str
    quality: ResolvedQuality
    background: Literal["opaque"]
    output_format: OutputFormat
    image_index: int
    partial_image_index: int | None = None
    usage: Usage | None = None
    seed: int | None = None
    safety_identifier: str | None = None
    degraded: DegradedSteps | None = None

    def __post_init__(self) -> None:
        """Refuse what a client could not tell apart: an event is one or the other."""
        assert (self.partial_image_index is None) != (self.usage is None)

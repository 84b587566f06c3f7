"""From a diffusers folder to a `PipelineSpec`, and from a request to its stage graph.

Reads only JSON and safetensors headers: no weights, no torch. A folder may hold a `trident.json`
with defaults and limits; without it the family's defaults apply.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.cards import Limits, ServingCard, read_card
from engine.errors import InvalidRequestError, PipelineError
from engine.families import TEAM_SIZES, Family, family_named, vae_scale_factor
from engine.folders import ModelFolder, open_folder
from engine.graph import Edge, StageGraph, StageNode
from engine.tiling import Tiling, tiling_of
from engine.types import (
    GenerationRequest,
    Modality,
    ModelId,
    NodeId,
    Purpose,
    Shape,
    Source,
    StageKey,
    StageKind,
)
from engine.weights import weight_bytes

DEFAULT_FPS = 8
DEFAULT_FRAMES = 16
DEFAULT_SIDE_PX = 1024
MAX_SIDE_PX = 8192  # below what every file format holds


class PipelineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine knows of a model before any weights are loaded.

    `weight_bytes` is what each stage's weights take in `dtype_bytes`-wide numbers. `degrees` are
    the numbers of devices that a diffuse can run on; `decodes_frames` tells that a team can share
    out the frames of a decode, `tiling` which pictures are decoded in tiles (None: none is).
    """

    id: ModelId
    folder: str
    family: str
    modality: Modality
    weight_bytes: Mapping[StageKind, int]
    size_multiple_px: int
    max_side_px: int
    default_shape: Shape
    default_fps: int
    default_steps: int
    default_guidance: float
    uses_negative_prompt: bool
    limits: Limits
    created_s: int
    degrees: tuple[int, ...] = TEAM_SIZES
    decodes_frames: bool = False
    tiling: Tiling | None = None
    description: str = ""

    def stage(self, kind: StageKind) -> StageKey:
        """Return the key of one of this model's stages."""
        return StageKey(self.id, kind)

    @property
    def stages(self) -> tuple[StageKey, ...]:
        """All stages, in the order encode, diffuse, decode."""
        return tuple(self.stage(kind) for kind in StageKind)

    def decode_parts(self, shape: Shape) -> int:
        """Return how many frames or tiles of a decode a team can share out; 1 if it is one piece."""
        if self.decodes_frames:
            return shape.frames
        return 1 if self.tiling is None else self.tiling.tiles(shape)

    def check_shape(self, shape: Shape) -> None:
        """Raise `InvalidRequestError` (param `size`) if the model cannot draw this size."""
        multiple = self.size_multiple_px
        if shape.width_px % multiple or shape.height_px % multiple:
            message = f"Size {shape} does not fit model {self.id}: width and height must be multiples of {multiple}."
            raise InvalidRequestError(message, param="size")
        if min(shape.width_px, shape.height_px) < multiple:
            message = f"Size {shape} is too small: each side needs at least {multiple} pixels."
            raise InvalidRequestError(message, param="size")
        pixels = shape.width_px * shape.height_px
        if pixels < self.limits.min_pixels:
            message = f"Size {shape} has {pixels} pixels; model {self.id} draws at least {self.limits.min_pixels}."
            raise InvalidRequestError(message, param="size")
        if pixels > self.limits.max_pixels:
            message = f"Size {shape} has {pixels} pixels; model {self.id} draws at most {self.limits.max_pixels}."
            raise InvalidRequestError(message, param="size")
        if max(shape.width_px, shape.height_px) > self.max_side_px:
            message = f"Size {shape} is too long: model {self.id} draws sides of at most {self.max_side_px} pixels."
            raise InvalidRequestError(message, param="size")

    def check_frames(self, frames: int) -> None:
        """Raise `InvalidRequestError` (param `seconds`) for more frames than the model makes."""
        most = 1 if self.modality is Modality.IMAGE else self.limits.max_frames
        if not 1 <= frames <= most:
            message = f"Model {self.id} makes 1 to {most} frames, not {frames}."
            raise InvalidRequestError(message, param="seconds")

    def check_steps(self, steps: int) -> None:
        """Raise `InvalidRequestError` (param `num_inference_steps`) outside 1..max_steps."""
        if not 1 <= steps <= self.limits.max_steps:
            message = f"num_inference_steps must be between 1 and {self.limits.max_steps} for model {self.id}, got {steps}."
            raise InvalidRequestError(message, param="num_inference_steps")

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidRequestError` if this model cannot do what the request asks."""
        if request.media.modality is not self.modality:
            message = (
                f"Model {self.id} makes {self.modality.value}s, not {request.media.value} files."
            )
            raise InvalidRequestError(message, param="model")
        self.check_shape(request.shape)
        self.check_frames(request.shape.frames)
        self.check_steps(request.steps)
        if request.source is not None:
            self._check_source(request.source, request.steps)
        if request.negative_prompt and not self.uses_negative_prompt:
            message = f"Model {self.id} does not use a negative prompt; leave negative_prompt out."
            raise InvalidRequestError(message, param="negative_prompt")

    def steps_from(self, schedule_steps: int, strength: float) -> int:
        """Return how many of a schedule's last steps a source of this strength is denoised for.

        Raises:
            InvalidRequestError: none, so that nothing would change (param `strength`).
        """
        rounds_down = family_named(self.family).floors_strength
        kept = min(schedule_steps * strength, schedule_steps)
        steps = int(kept) if rounds_down else schedule_steps - int(schedule_steps - kept)
        if steps < 1:
            message = f"With strength {strength} none of {schedule_steps} steps is left; raise one of them."
            raise InvalidRequestError(message, param="strength")
        return steps

    def _check_source(self, source: Source, steps: int) -> None:
        if source.mask is not None and self.modality is Modality.VIDEO:
            message = f"Model {self.id} makes videos and cannot keep parts of them; leave mask out."
            raise InvalidRequestError(message, param="mask")
        if not 0 < source.strength <= 1:
            message = f"strength must be above 0 and at most 1, not {source.strength}."
            raise InvalidRequestError(message, param="strength")
        if steps != self.steps_from(source.schedule_steps, source.strength):
            message = f"{steps} steps do not follow from strength {source.strength}."
            raise InvalidRequestError(message, param="strength")


def served(model: ModelId, specs: Mapping[ModelId, PipelineSpec]) -> PipelineSpec:
    """Return a model that is served; raises `InvalidRequestError` (param `model`) if it is not."""
    if model not in specs:
        message = f"Model {model!r} is not served; known: {', '.join(specs)}."
        raise InvalidRequestError(message, param="model")
    return specs[model]


def build(spec: PipelineSpec, request: GenerationRequest) -> StageGraph:
    """Return the request's graph: one encode, then a diffuse and a decode per output.

    A source is encoded beside the prompt, by the stage that holds the autoencoder: decode.
    """
    spec.check(request)
    roots = [StageNode(NodeId("encode"), spec.stage(StageKind.ENCODE))]
    if request.source is not None:
        holder = spec.stage(StageKind.DECODE)
        roots.append(StageNode(NodeId("encode-image"), holder, purpose=Purpose.IMAGE_ENCODE))
    nodes, edges = list(roots), []
    for index in range(request.n):
        diffuse = StageNode(diffuse_node(index), spec.stage(StageKind.DIFFUSE), index)
        decode = StageNode(NodeId(f"decode-{index}"), spec.stage(StageKind.DECODE), index)
        nodes += [diffuse, decode]
        edges += [*(Edge(root.id, diffuse.id) for root in roots), Edge(diffuse.id, decode.id)]
    return StageGraph(nodes, edges)


def diffuse_node(index: int) -> NodeId:
    """Return the node of a request's graph that diffuses output `index`."""
    return NodeId(f"diffuse-{index}")


def open_pipeline(
    folder: Path, *, model_id: str | None = None, dtype_bytes: int = 4
) -> PipelineSpec:
    """Read a diffusers folder.

    Args:
        folder: what `save_pretrained` wrote.
        model_id: the name clients use; the folder's name if None.
        dtype_bytes: width of one weight as it will be loaded (4 for float32, 2 for bfloat16).

    Raises:
        PipelineError: a file is missing or malformed, or the pipeline class is not served.
    """
    found = open_folder(folder)
    family, configs = found.family, found.configs
    card = read_card(folder)
    multiple, max_side = _size_rules(found)
    is_picture = family.modality is Modality.IMAGE
    tiling = tiling_of(configs, card.tiled_above_pixels) if is_picture else None
    spec = PipelineSpec(
        id=ModelId(model_id or folder.resolve().name),
        folder=str(folder.resolve()),
        family=family.name,
        modality=family.modality,
        weight_bytes={
            kind: sum(
                weight_bytes(folder / name, dtype_bytes)
                for name in names
                if name in found.components
            )
            for kind, names in family.components.items()
        },
        size_multiple_px=multiple,
        max_side_px=max_side,
        default_shape=_default_shape(card, family, configs, (multiple, max_side)),
        default_fps=card.defaults.fps or DEFAULT_FPS,
        default_steps=card.defaults.steps or family.default_steps,
        default_guidance=_first(card.defaults.guidance_scale, family.default_guidance),
        uses_negative_prompt=family.uses_negative_prompt,
        degrees=family.degrees,
        decodes_frames=family.decodes_frames,
        tiling=tiling,
        limits=_limits(card, configs),
        created_s=int((folder / "model_index.json").stat().st_mtime),
        description=card.description,
    )
    _check_defaults(folder, spec)
    return spec


def _check_defaults(folder: Path, spec: PipelineSpec) -> None:
    try:
        spec.check_shape(spec.default_shape)
        spec.check_frames(spec.default_shape.frames)
        spec.check_steps(spec.default_steps)
    except InvalidRequestError as error:
        message = f"The defaults in {folder / 'trident.json'} do not fit the model: {error}"
        raise PipelineError(message) from error


def _size_rules(folder: ModelFolder) -> tuple[int, int]:
    family, configs = folder.family, folder.configs
    try:
        multiple = family.size_multiple_px(configs)
        return multiple, min(MAX_SIDE_PX, family.max_side_px(configs) or MAX_SIDE_PX)
    except (KeyError, TypeError, ValueError) as error:
        message = (
            f"{folder.path} is no complete {family.pipeline_class}: {error} is missing or malformed in "
            "model_index.json or a component's config.json."
        )
        raise PipelineError(message) from error


def _first(value: float | None, default: float) -> float:
    return default if value is None else value


def _default_shape(
    card: ServingCard,
    family: Family,
    configs: Mapping[str, Mapping[str, Any]],
    sides: tuple[int, int],
) -> Shape:
    """Return the card's size, or the one that the denoiser was configured for."""
    denoiser = configs.get("transformer") or configs.get("unet") or {}
    cells = denoiser.get("sample_size")
    side = cells * vae_scale_factor(configs) if isinstance(cells, int) else DEFAULT_SIDE_PX
    multiple, most = sides
    side = min(most, max(multiple, side)) // multiple * multiple
    frames = 1
    if family.modality is Modality.VIDEO:
        frames = card.defaults.frames or DEFAULT_FRAMES
    return Shape(card.defaults.width_px or side, card.defaults.height_px or side, frames)


def _limits(card: ServingCard, configs: Mapping[str, Mapping[str, Any]]) -> Limits:
    """Return the card's limits, cut to the frames that a motion module has positions for."""
    positions = configs.get("unet", {}).get("motion_max_seq_length")
    most = card.limits.max_frames
    frames = min(most, positions) if isinstance(positions, int) else most
    return msgspec.structs.replace(card.limits, max_frames=frames)

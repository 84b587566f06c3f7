"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath

from engine import Modality, ModelId, PipelineSpec
from gateway.engine_client import Catalogue
from gateway.errors import ForbiddenError, ModelNotFoundError
from gateway.schemas.models import Model, ModelList
from observability.semconv import SERVICE_NAME


def _model_of(spec: PipelineSpec) -> Model:
    is_video, shape = spec.modality is Modality.VIDEO, spec.default_shape
    return Model(
        id=spec.id,
        created=spec.created_s,
        owned_by=SERVICE_NAME,
        modality="video" if is_video else "image",
        inputs=("text", "image", "video") if is_video else ("text", "image"),
        default_size=f"{shape.width_px}x{shape.height_px}",
        size_multiple_px=spec.size_multiple_px,
        max_side_px=spec.max_side_px,
        max_pixels=spec.limits.max_pixels,
        default_frames=shape.frames,
        max_frames=spec.limits.max_frames if is_video else 1,
        default_fps=spec.default_fps if is_video else None,
        default_steps=spec.default_steps,
        max_steps=spec.limits.max_steps,
        uses_negative_prompt=spec.uses_negative_prompt,
        description=spec.description,
    )


class ModelController(Controller):
    """The models that are served."""

    path = "/models"
    tags = ("models",)

    @get()
    async def list_models(self, engine: NamedDependency[Catalogue]) -> ModelList:
        """List all models."""
        return ModelList(data=tuple(_model_of(spec) for spec in engine.specs.values()))

    @get("/{model_id:path}")
    async def get_model(self, model_id: FromPath[str], engine: NamedDependency[Catalogue]) -> Model:
        """Return one model; its id may hold slashes."""
        name = model_id.removeprefix("/")
        spec = engine.specs.get(ModelId(name))
        if spec is None:
            raise ModelNotFoundError(name)
        return _model_of(spec)

    @delete("/{model_id:path}", status_code=200)
    async def remove(self, model_id: FromPath[str], engine: NamedDependency[Catalogue]) -> Model:
        """Refuse: upstream, only models that a caller has fine-tuned can be removed."""
        name = model_id.removeprefix("/")
        if ModelId(name) not in engine.specs:
            raise ModelNotFoundError(name)
        message = f"The model '{name}' is the operator's; it cannot be removed here."
        raise ForbiddenError(message, code="model_not_removable")

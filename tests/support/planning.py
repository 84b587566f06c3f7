"""A small L20 world for planner tests: published step times, assumed sizes, views, snapshots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from engine.pipelines import Limits, PipelineSpec
from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    GenerationRequest,
    Modality,
    ModelId,
    Placement,
    Shape,
    StageKey,
    StageKind,
)
from observability.snapshot import Asked, MonitorSnapshot, RequestClass
from schedulers.planner import Demand, uniform
from tests.support.builders import a_spec

GB = 10**9
L20_BYTES = 48 * GB
SD3, FLUX, COG, HUNYUAN = (ModelId(m) for m in ("sd3", "flux1", "cogvideox1.5-5b", "hunyuanvideo"))
E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE

STEP_S: Mapping[ModelId, Mapping[Shape, tuple[float, float, float, float]]] = {
    SD3: {
        Shape(128, 128): (0.022, 0.022, 0.022, 0.022),
        Shape(256, 256): (0.030, 0.030, 0.030, 0.030),
        Shape(512, 512): (0.059, 0.063, 0.063, 0.063),
        Shape(1024, 1024): (0.243, 0.179, 0.167, 0.154),
        Shape(1536, 1536): (0.595, 0.367, 0.298, 0.173),
    },
    FLUX: {
        Shape(128, 128): (0.054, 0.055, 0.051, 0.046),
        Shape(256, 256): (0.109, 0.110, 0.101, 0.093),
        Shape(512, 512): (0.222, 0.195, 0.137, 0.121),
        Shape(1024, 1024): (0.840, 0.538, 0.324, 0.227),
        Shape(2048, 2048): (4.67, 2.85, 1.48, 1.28),
    },
    COG: {
        Shape(432, 768, 17): (1.19, 0.763, 0.450, 0.30),
        Shape(432, 768, 33): (2.16, 1.36, 0.752, 0.452),
        Shape(432, 768, 65): (4.42, 2.76, 1.49, 0.826),
        Shape(432, 768, 81): (5.72, 3.51, 1.89, 1.01),
        Shape(1360, 768, 17): (4.71, 2.91, 1.55, 0.840),
        Shape(1360, 768, 33): (9.37, 5.63, 3.00, 1.57),
        Shape(1360, 768, 65): (22.14, 13.07, 6.77, 3.56),
        Shape(1360, 768, 81): (30.5, 17.75, 9.1, 4.75),
    },
    HUNYUAN: {
        Shape(544, 960, 17): (2.77, 1.83, 1.02, 0.68),
        Shape(544, 960, 33): (6.01, 3.68, 2.03, 1.00),
        Shape(544, 960, 65): (15.09, 8.76, 4.51, 2.30),
        Shape(544, 960, 129): (43.58, 24.6, 12.4, 6.67),
        Shape(1280, 720, 17): (5.84, 3.61, 1.86, 1.08),
        Shape(1280, 720, 33): (13.7, 8.01, 4.10, 2.35),
        Shape(1280, 720, 65): (37.53, 21.0, 10.7, 5.80),
        Shape(1280, 720, 129): (118.0, 64.48, 31.92, 16.35),
    },
}
STEPS = {SD3: 20, FLUX: 28, COG: 6, HUNYUAN: 4}
WEIGHTS_GB = {
    SD3: (9.8, 4.1, 0.1),
    FLUX: (10.1, 24.0, 0.1),
    COG: (9.5, 11.0, 0.5),
    HUNYUAN: (16.0, 26.0, 0.5),
}
ENCODE_S = {SD3: 0.08, FLUX: 0.08, COG: 0.15, HUNYUAN: 0.30}
_VIDEO_FORCED = ((720 * 1280 * 65, 8), (720 * 1280 * 33, 4), (720 * 1280 * 17, 2))
_ACTIVATION_PER_VOXEL = 18 * GB / (720 * 1280 * 17)


def weight_bytes(*models: ModelId) -> dict[StageKey, int]:
    return {
        StageKey(model, kind): int(size * GB)
        for model in models
        for kind, size in zip(StageKind, WEIGHTS_GB[model], strict=True)
    }


def spec_of(model: ModelId) -> PipelineSpec:
    video = model in (COG, HUNYUAN)
    return a_spec(
        model,
        modality=Modality.VIDEO if video else Modality.IMAGE,
        weight_bytes={key.kind: size for key, size in weight_bytes(model).items()},
        default_shape=next(iter(STEP_S[model])),
        default_steps=STEPS[model],
        limits=Limits(),
    )


class Priced(msgspec.Struct, frozen=True):
    """A `StageEstimate`."""

    duration_s: float
    activation_bytes: int


class L20Cost:
    """A `StageCost` with the published step times; decode may be made slower."""

    def __init__(self, *, decode_factor: float = 1.0) -> None:
        self.decode_factor = decode_factor

    def estimate(
        self, stage: StageKey, request: GenerationRequest, *, degree: int = 1, batch: int = 1
    ) -> Priced:
        del batch
        shape = request.shape
        if stage.kind is E:
            return Priced(ENCODE_S[stage.model], GB)
        if stage.kind is C:
            image = 0.02 + 0.48 * shape.pixels / 2048**2
            video = 10.0 * shape.pixels / (768 * 1360 * 81)
            seconds = image if shape.frames == 1 else video
            return Priced(seconds * self.decode_factor, 3 * GB)
        step_s = STEP_S[stage.model][shape][(1, 2, 4, 8).index(degree)]
        size = 2 * GB if shape.frames == 1 else _ACTIVATION_PER_VOXEL * shape.pixels
        return Priced(request.steps * step_s, int(size / degree))

    def degrees(self, model: ModelId) -> Sequence[int]:
        del model
        return (1, 2, 4, 8)

    def min_degree(self, model: ModelId, shape: Shape) -> int:
        del model
        if shape.frames == 1:
            return 2 if shape.pixels >= 2048**2 else 1
        return next((k for voxels, k in _VIDEO_FORCED if shape.pixels > voxels), 1)

    def load_s(self, stage: StageKey, *, from_peer: bool) -> float:
        size = weight_bytes(stage.model)[stage]
        return size / (50 * GB if from_peer else 25 * GB)


def even(model: ModelId, rate_per_s: float | None, shapes: Collection[Shape] = ()) -> Demand:
    return uniform({model: tuple(shapes or STEP_S[model])}, STEPS, rate_per_s)


def a_cluster(nodes: int, per_node: int = 8) -> list[DeviceInfo]:
    return [
        DeviceInfo(DeviceId(f"n{n:03}/g{g}"), f"n{n:03}", L20_BYTES)
        for n in range(nodes)
        for g in range(per_node)
    ]


def view_of(
    infos: Sequence[DeviceInfo],
    models: Collection[ModelId],
    *,
    placement: Placement | None = None,
    lost: Collection[DeviceId] = (),
    now_s: float = 0.0,
) -> ClusterView:
    """A cluster that has loaded all that `placement` wants."""
    stages = {} if placement is None else placement.stages
    return ClusterView(
        configured=tuple(info.id for info in infos),
        devices=tuple(
            DeviceView(
                info=info,
                capacity_bytes=info.memory_bytes,
                free_bytes=info.memory_bytes,
                resident=stages.get(info.id, frozenset()),
                desired=stages.get(info.id, frozenset()),
                busy_until_s=None,
            )
            for info in infos
            if info.id not in lost
        ),
        weight_bytes=weight_bytes(*models),
        now_s=now_s,
    )


def snapshot_of(demand: Demand, now_s: float, *, window_s: float = 60.0) -> MonitorSnapshot:
    """What a monitor shows after a window of exactly this demand."""
    asked = {
        RequestClass(str(entry.model), str(entry.shape)): Asked(
            outputs=round(entry.rate_per_s * window_s), mean_steps=entry.steps
        )
        for entry in demand.classes
    }
    return MonitorSnapshot(
        taken_s=now_s, window_s=window_s, blind=False, dropped_events=0, classes={}, asked=asked
    )


def label(stages: frozenset[StageKey]) -> str:
    """The letters of a device's stages, all models alike: `EDC`, `DC`, `C` ..."""
    letters = {E: "E", D: "D", C: "C"}
    return "".join(letters[kind] for kind in StageKind if any(s.kind is kind for s in stages))

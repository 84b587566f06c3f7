"""What a request costs by a profile: the unit in which workloads state their load."""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import GenerationRequest, ModelId, RequestId, Shape, StageKind
from schedulers.cost import CostModel
from schedulers.profile import load_profile, specs_of
from schedulers.sim.phases import GpuSeconds
from schedulers.sim.traces import TraceRow


def gpu_seconds(profile: str, models: Sequence[str]) -> GpuSeconds:
    """Return a price: GPU-seconds of all stages, diffuse at its cheapest feasible degree.

    Encode and decode run alone on one device, as they do without batching.

    Raises:
        ProfileError: the profile is malformed or lacks a model.
    """
    loaded = load_profile(profile)
    specs = {spec.id: spec for spec in specs_of(loaded, models)}
    cost = CostModel(tuple(specs.values()), loaded, learn=False)

    def price(row: TraceRow) -> float:
        wish = _wish(row, ModelId(row.model or models[0]))
        total = 0.0
        for stage in specs[wish.model].stages:
            degrees: Sequence[int] = (1,)
            if stage.kind is StageKind.DIFFUSE:
                least = cost.min_degree(wish.model, wish.shape)
                degrees = [k for k in cost.degrees(wish.model) if k >= least] or (least,)
            total += min(k * cost.estimate(stage, wish, degree=k).duration_s for k in degrees)
        return total

    return price


def _wish(row: TraceRow, model: ModelId) -> GenerationRequest:
    return GenerationRequest(
        id=RequestId("priced"),
        model=model,
        prompt="",
        shape=Shape(row.width, row.height, row.frames),
        steps=row.steps,
        guidance_scale=1.0,
        seed=0,
        arrival_s=row.arrival_s,
        deadline_s=row.arrival_s,
    )

"""Whether a request with a model's defaults would succeed now, and if not, why.

Two questions per stage: are its weights where a live device can use them (the loader knows), and
would the dispatcher ever place it (only the policy knows what activations take).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from engine.pipelines import PipelineSpec
from engine.types import (
    ClusterView,
    GenerationRequest,
    MediaFormat,
    Modality,
    NodeId,
    RequestId,
    StageKey,
    StageTask,
    TaskId,
)

if TYPE_CHECKING:
    from engine.loading import Loader
    from engine.ports import Dispatcher
    from engine.quarantine import Quarantine


def obstacles(
    specs: Iterable[PipelineSpec], loader: Loader, dispatcher: Dispatcher, view: ClusterView
) -> tuple[str, ...]:
    """Return one sentence per stage that could not run now; empty if all could."""
    if not view.devices:
        known = len(view.configured)
        return (f"None of the {known} workers is up yet." if known else "No device is there yet.",)
    found: list[str] = []
    for spec in specs:
        for stage in spec.stages:
            probe = _probe(spec, stage, view.now_s)
            impossible = dispatcher.why_impossible(probe, view)
            found += (
                loader.shortfall.why_not_servable(stage) if impossible is None else (impossible,)
            )
    return tuple(found)


def notices(quarantine: Quarantine, now_s: float) -> tuple[str, ...]:
    """Return one sentence per device in quarantine."""
    return tuple(
        f"Device {device} is in quarantine for another {max(0.0, until_s - now_s):.0f} s: launches "
        "of several requests failed on it. The others are planned without it."
        for device, until_s in sorted(quarantine.devices(now_s).items())
    )


def _probe(spec: PipelineSpec, stage: StageKey, now_s: float) -> StageTask:
    """Return a stage of a request that says nothing but the model."""
    is_video = spec.modality is Modality.VIDEO
    request = GenerationRequest(
        id=RequestId("probe"),
        model=spec.id,
        prompt="",
        shape=spec.default_shape,
        steps=spec.default_steps,
        guidance_scale=spec.default_guidance,
        seed=0,
        arrival_s=now_s,
        deadline_s=now_s,
        media=MediaFormat.MP4 if is_video else MediaFormat.PNG,
    )
    return StageTask(
        id=TaskId(f"probe/{stage}"),
        request=request,
        node=NodeId(stage.kind.value),
        stage=stage,
        image_index=0,
        inputs=(),
        sequence=0,
        attempt=1,
        ready_s=now_s,
    )

"""Clusters and tasks for policies under test: views of l20 nodes and ready tasks of profiled models."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from engine.types import (
    ClusterView,
    DeviceId,
    DeviceInfo,
    DeviceView,
    GenerationRequest,
    ModelId,
    NodeId,
    RequestId,
    Shape,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)
from schedulers.cost import CostModel
from schedulers.planner.demand import uniform
from schedulers.profile import Profile, load_profile, specs_of

COG = ModelId("cogvideox1.5-5b")
PROFILE = load_profile("l20")
SPECS = specs_of(PROFILE, [COG])
COST = CostModel(SPECS, PROFILE, learn=False)
MIX = uniform({COG: PROFILE.models[COG].shapes}, {COG: 6})
SHORT, MIDDLE, LONG = Shape(768, 432, 17), Shape(768, 1360, 17), Shape(768, 1360, 81)  # k 1, 2, 8


def batched(times: float, *kinds: StageKind) -> Profile:
    """Return the profile, were batches of four to take so many times as long as one."""
    model = PROFILE.models[COG]
    stages = dict(model.stages)
    for kind in kinds:
        more = tuple(
            msgspec.structs.replace(entry, batch=4, duration_s=times * entry.duration_s)
            for entry in stages[kind].entries
            if entry.degree == 1
        )
        entries = stages[kind].entries + more
        stages[kind] = msgspec.structs.replace(stages[kind], entries=entries)
    model = msgspec.structs.replace(model, stages=stages)
    return msgspec.structs.replace(PROFILE, models={**PROFILE.models, COG: model})


def far_apart(across_node_s: float) -> Profile:
    """Return the profile, were nodes so far from each other."""
    model = PROFILE.models[COG]
    edges = {
        kind: msgspec.structs.replace(edge, across_node_s=across_node_s)
        for kind, edge in model.edges.items()
    }
    return msgspec.structs.replace(
        PROFILE, models={**PROFILE.models, COG: msgspec.structs.replace(model, edges=edges)}
    )


def device_ids(nodes: int, per_node: int = 8) -> list[DeviceId]:
    return [DeviceId(f"n{n}g{g}") for n in range(nodes) for g in range(per_node)]


def a_cluster(
    nodes: int = 1,
    *,
    per_node: int = 8,
    busy: Collection[str] = (),
    lost: Collection[str] = (),
    pools: Mapping[str, StageKind] | None = None,
    now_s: float = 0.0,
    **changes: Any,
) -> ClusterView:
    """Return nodes of which each device holds every stage, or one only if `pools` says so."""
    ids = device_ids(nodes, per_node)
    stages = SPECS[0].stages

    def device(device_id: DeviceId) -> DeviceView:
        kind = (pools or {}).get(device_id)
        held = frozenset(stage for stage in stages if kind is None or stage.kind is kind)
        info = DeviceInfo(device_id, device_id.partition("g")[0], PROFILE.node.memory_bytes)
        capacity_bytes = info.memory_bytes - PROFILE.node.reserve_bytes
        return DeviceView(
            info=info,
            capacity_bytes=capacity_bytes,
            free_bytes=capacity_bytes - sum(SPECS[0].weight_bytes[s.kind] for s in held),
            resident=held,
            desired=held,
            busy_until_s=now_s + 5.0 if device_id in busy else None,
        )

    values: dict[str, Any] = {
        "configured": tuple(ids),
        "devices": tuple(device(d) for d in ids if d not in lost),
        "weight_bytes": {SPECS[0].stage(k): size for k, size in SPECS[0].weight_bytes.items()},
        "now_s": now_s,
    }
    return ClusterView(**(values | changes))


def a_ready(
    name: str,
    shape: Shape = SHORT,
    kind: StageKind = StageKind.ENCODE,
    *,
    sequence: int = 0,
    arrival_s: float = 0.0,
    deadline_s: float = 1e4,
    **changes: Any,
) -> StageTask:
    """Return a ready task of a request for one video."""
    request = GenerationRequest(
        id=RequestId(name),
        model=COG,
        prompt="",
        shape=shape,
        steps=6,
        guidance_scale=1.0,
        seed=0,
        arrival_s=arrival_s,
        deadline_s=deadline_s,
    )
    values: dict[str, Any] = {
        "id": TaskId(f"{name}/{kind.value}"),
        "request": request,
        "node": NodeId(kind.value),
        "stage": StageKey(COG, kind),
        "image_index": 0,
        "inputs": (),
        "sequence": sequence,
        "attempt": 1,
        "ready_s": arrival_s,
    }
    return StageTask(**(values | changes))

"""Crews: which models and classes share primaries of one role."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.types import ModelId, StageKey, StageKind
from schedulers.planner.capacity import room
from schedulers.planner.replicas import Memory, Role, VirtualReplica, Wanted

E, D, C = StageKind.ENCODE, StageKind.DIFFUSE, StageKind.DECODE


class Crew(msgspec.Struct, frozen=True):
    """Primaries of one role and the classes that they are counted for."""

    role: Role
    items: tuple[Wanted, ...]

    @property
    def width(self) -> int:
        """The largest degree that one of its classes needs."""
        return max(item.need.degree for item in self.items)

    @property
    def work(self) -> float:
        """Work that comes in, in devices, with the stages that the role keeps to itself."""
        kept = sum(
            item.work_of(kind)
            for item in self.items
            for kind in (E, C)
            if item.load.stage(kind) in self.role
        )
        return kept + sum(item.work for item in self.items)


def of_model(classes: Sequence[Wanted], model: ModelId) -> list[Wanted]:
    """Return the classes of one model."""
    return [item for item in classes if item.load.model == model]


def crews_of(
    classes: Sequence[Wanted], group: Sequence[ModelId], apart: frozenset[ModelId]
) -> list[Crew]:
    """Return one crew per replica type of a single model, or one for a group of several."""
    items = [item for item in classes if item.load.model in group]
    if len(group) > 1:
        role = frozenset[StageKey]().union(*(_joint(items, model, apart) for model in group))
        return [Crew(role, tuple(items))]
    by_role: dict[Role, list[Wanted]] = {}
    for item in items:
        by_role.setdefault(_role(item.load.model, item.need.replica, apart), []).append(item)
    return [Crew(role, tuple(members)) for role, members in by_role.items()]


def _joint(items: Sequence[Wanted], model: ModelId, apart: frozenset[ModelId]) -> Role:
    return frozenset.intersection(
        *(_role(model, item.need.replica, apart) for item in of_model(items, model))
    )


def _role(model: ModelId, replica: VirtualReplica, apart: frozenset[ModelId]) -> Role:
    """Return a primary's stages; of models in `apart`, encode goes to auxiliaries in any case."""
    stages = replica.stages(model)
    return stages - {StageKey(model, E)} if model in apart else stages


def groupings(
    classes: Sequence[Wanted], memory: Memory, apart: frozenset[ModelId]
) -> list[list[list[ModelId]]]:
    """Return ways to share devices between models: as many together as fit, or each alone."""
    models = sorted({item.load.model for item in classes})
    heaviest = sorted(
        models, key=lambda m: (-memory.of(frozenset(StageKey(m, k) for k in StageKind)), m)
    )
    together: list[list[ModelId]] = []
    for model in heaviest:
        home = next((g for g in together if _fit(classes, [*g, model], memory, apart)), None)
        if home is None:
            together.append([model])
        else:
            home.append(model)
    alone = [[model] for model in heaviest]
    return [together] if together == alone else [together, alone]


def _fit(
    classes: Sequence[Wanted], group: Sequence[ModelId], memory: Memory, apart: frozenset[ModelId]
) -> bool:
    [crew] = crews_of(classes, group, apart)
    held = memory.of(crew.role)
    spill = max(
        (
            item.load.bytes_of(kind, 1)
            for item in crew.items
            for kind in (E, C)
            if item.load.stage(kind) in crew.role
        ),
        default=0,
    )
    return held + spill <= memory.capacity_bytes and all(
        room(item, crew.role, memory) for item in crew.items
    )

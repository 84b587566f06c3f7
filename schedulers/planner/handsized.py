"""A planner with sizes from a human: the same packing, no thinking.

Benchmarks search the best hand-sized placement with it, to see how close the orchestrator comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from engine.pipelines import PipelineSpec
from engine.types import ClusterView, DeviceId, Placement, StageKind
from observability.snapshot import MonitorSnapshot
from schedulers.planner.integrity import PlacementError
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.packing import Recipe, Share, lay_out, seat
from schedulers.planner.replicas import Role
from schedulers.planner.roster import Roster, by_node

_BOOT_GRACE_S = PlannerKnobs().boot_grace_s


class HandSizes(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a placement.

    Attributes:
        decode: devices that only decode; with 0, primaries decode.
        encode: devices that only encode; with 0, primaries encode.
        primaries: devices that diffuse; None for all others. More pools than devices is an error.
        spill: whether primaries keep the decode stage beside a decode pool.
        width: the node-local blocks that primaries lie in; None for whole nodes.
        models: primaries of each model, by its name; empty if every primary serves all models.
    """

    decode: int = 0
    encode: int = 0
    primaries: int | None = None
    spill: bool = True
    width: int | None = None
    models: Mapping[str, int] = {}


class HandSized:
    """A `Planner` that places models in given numbers, anew when devices change."""

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        sizes: HandSizes,
        *,
        nodes: Mapping[DeviceId, str] | None = None,
    ) -> None:
        """Place `specs` in `sizes`."""
        self._specs, self._sizes = tuple(specs), sizes
        self._roster = Roster(nodes, _BOOT_GRACE_S)
        self._presence: tuple[tuple[DeviceId, str], ...] = ()
        self._live, self._version = -1, 0

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Return a placement at the start and when devices change, else None."""
        if len(view.devices) == self._live and snapshot is None:
            return None
        self._live = len(view.devices)
        slots = self._roster.slots(view)
        presence = tuple((slot.id, slot.node) for slot in slots)
        if not slots or presence == self._presence:
            return None
        self._presence = presence
        self._version += 1
        widest = max(len(node) for node in by_node(slots).values())
        recipe = self._recipe(len(slots), widest)
        capacity = min(slot.capacity_bytes for slot in slots)
        for share in (*recipe.primaries, *recipe.pools):
            if sum(view.weight_bytes[stage] for stage in share.role) > capacity:
                message = f"{', '.join(map(str, sorted(share.role)))} do not fit one device of {capacity} bytes."
                raise PlacementError(message)
        sizes = [len(node) for node in by_node(slots).values()]
        layout = lay_out(recipe, sizes, broken_first=True)
        return Placement(self._version, dict(seat(layout, slots, view.weight_bytes).roles))

    def _recipe(self, devices: int, widest: int) -> Recipe:
        sizes = self._sizes
        left = devices - sizes.decode - sizes.encode
        count = left if sizes.primaries is None else sizes.primaries
        count = sum(sizes.models.values()) or count
        if not 0 < count <= left:
            message = f"{devices} devices cannot hold {sizes.encode} encoders, {sizes.decode} decoders and {count} primaries."
            raise PlacementError(message)
        width = sizes.width or widest
        shares = [Share(self._primary(self._specs), count, width)]
        if sizes.models:
            known = {str(spec.id): (spec,) for spec in self._specs}
            if unknown := sorted(set(sizes.models) - set(known)):
                message = f"{unknown[0]} has a size but is not served; there is {', '.join(known)}."
                raise PlacementError(message)
            shares = [
                Share(self._primary(known[name]), size, width)
                for name, size in sizes.models.items()
            ]
        pools = ((StageKind.DECODE, sizes.decode), (StageKind.ENCODE, sizes.encode))
        return Recipe(
            "sized by hand",
            tuple(shares),
            tuple(Share(_role(self._specs, kind), size) for kind, size in pools if size),
        )

    def _primary(self, specs: Sequence[PipelineSpec]) -> Role:
        """Return the role of a device that diffuses these models."""
        role = _role(specs, StageKind.DIFFUSE)
        if not self._sizes.encode:
            role |= _role(specs, StageKind.ENCODE)
        if not self._sizes.decode or self._sizes.spill:
            role |= _role(specs, StageKind.DECODE)
        return role


def _role(specs: Sequence[PipelineSpec], kind: StageKind) -> Role:
    return frozenset(spec.stage(kind) for spec in specs)

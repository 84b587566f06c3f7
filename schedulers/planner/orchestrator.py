"""The Dynamic Orchestrator: a `Planner` that sizes and packs roles from the demand it sees.

Called on every turn of the core loop, it answers at once when there is nothing to learn. It
thinks at the start, when devices come or go, when a class has no team, and when the monitor shows
for two windows that stages are unbalanced or the mix is another. It switches only if that gains
more than it costs. It loads nothing: a placement is a wish that the engine follows lazily.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from engine.pipelines import PipelineSpec
from engine.types import ClusterView, DeviceId, Modality, ModelId, Placement, Shape, StageKey
from observability.snapshot import MonitorSnapshot
from schedulers.planner.capacity import Balance, sustained
from schedulers.planner.decision import Decision, Trigger
from schedulers.planner.demand import ClassDemand, Demand, blended, merged, observed, uniform
from schedulers.planner.drafting import Draft, Drafter
from schedulers.planner.integrity import check_integrity, nodes_of, unserved
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.ports import StageCost
from schedulers.planner.replicas import Memory, Role, Wanted, price_all, wanted
from schedulers.planner.roster import Roster, Slot, by_node
from schedulers.planner.switching import Loads, Verdict, extra_loads, weigh
from schedulers.planner.triggers import Mix, Signs, total_variation, work_mix

_LOOK_EVERY_S = 1.0
_REMEMBERED_CLASSES = 64
_DEFAULT_KNOBS = PlannerKnobs()


class _Scene(msgspec.Struct, frozen=True):
    """Everything that one deliberation rests on; `nodes` is what they should hold so far."""

    now_s: float
    window_s: float
    slots: tuple[Slot, ...]
    nodes: list[Counter[Role]]
    memory: Memory
    demand: Demand
    classes: tuple[Wanted, ...]
    impossible: tuple[ClassDemand, ...]


class Orchestrator:
    """Plans placements from demand, memory and speeds.

    Args:
        specs: the models that are served; each stays servable at its default size.
        cost: what stages take; corrections that it learns are used from then on.
        nodes: node of each device, as far as it is known before its worker is up.
        prior: the demand to expect at the start; its classes stay servable for good. Without one,
            the models' default sizes evenly.
        policy: the knobs.
        faithful: the paper's Algorithm 2 and trigger, without our repairs.
    """

    def __init__(
        self,
        specs: Sequence[PipelineSpec],
        cost: StageCost,
        *,
        nodes: Mapping[DeviceId, str] | None = None,
        prior: Demand | None = None,
        policy: PlannerKnobs = _DEFAULT_KNOBS,
        faithful: bool = False,
    ) -> None:
        """Know the models and what they cost; plan at the first call."""
        self._cost, self._knobs, self._faithful = cost, policy, faithful
        self._roster = Roster(nodes, policy.boot_grace_s)
        self._videos = frozenset(spec.id for spec in specs if spec.modality is Modality.VIDEO)
        self._steps: dict[ModelId, int] = {spec.id: spec.default_steps for spec in specs}
        defaults = uniform({spec.id: (spec.default_shape,) for spec in specs}, self._steps)
        self._demand = prior if prior is not None and prior.classes else defaults
        self._always = merged(self._demand, defaults).silenced()
        self._seen: dict[tuple[ModelId, Shape], ClassDemand] = {}
        self._roles: dict[DeviceId, Role] = {}
        self._swapped: frozenset[Role] = frozenset()
        self._version = 0
        self._presence: tuple[tuple[DeviceId, str, int], ...] = ()
        self._planned_for = Demand(())
        self._mix: Mix = {}
        self._sample = 0  # requests in the latest window that had any
        self._signs = Signs()
        self._live, self._look_s, self._begun_s = -1, 0.0, 0.0
        self._quiet_until_s, self._think_again_s = 0.0, 0.0
        self._last: Decision | None = None

    @property
    def last_decision(self) -> Decision | None:
        """The latest deliberation, None before the first."""
        return self._last

    def place(self, view: ClusterView, snapshot: MonitorSnapshot | None) -> Placement | None:
        """Return a new placement if there is a better one by enough, else None."""
        if snapshot is None and len(view.devices) == self._live and view.now_s < self._look_s:
            return None
        if self._live < 0:
            self._begun_s = view.now_s
        self._live, self._look_s = len(view.devices), view.now_s + _LOOK_EVERY_S
        slots = self._slots(view)
        if not slots:
            return None
        presence = tuple((slot.id, slot.node, slot.capacity_bytes) for slot in slots)
        changed, self._presence = presence != self._presence, presence
        if snapshot is not None and not snapshot.blind:
            self._learn(snapshot)
        return self._consider(view, slots, snapshot, changed=changed)

    def _slots(self, view: ClusterView) -> tuple[Slot, ...]:
        """Return the devices to count on; those not up yet will hold what they should."""
        return tuple(
            slot
            if slot.is_live
            else msgspec.structs.replace(slot, desired=self._roles.get(slot.id, frozenset()))
            for slot in self._roster.slots(view)
        )

    def _learn(self, snapshot: MonitorSnapshot) -> None:
        seen = observed(
            snapshot,
            elapsed_s=snapshot.taken_s - self._begun_s,
            known=merged(self._demand, self._always),
            steps=self._steps,
        )
        if not seen.requests:
            return
        self._sample = seen.requests
        self._demand = blended(seen, self._planned_for, self._knobs.min_requests)
        for entry in seen.demand.classes:
            key = (entry.model, entry.shape)
            self._seen.pop(key, None)  # the latest seen is the last to be forgotten
            self._seen[key] = msgspec.structs.replace(entry, rate_per_s=0.0)
        while len(self._seen) > _REMEMBERED_CLASSES:
            del self._seen[next(iter(self._seen))]

    def _consider(
        self,
        view: ClusterView,
        slots: tuple[Slot, ...],
        snapshot: MonitorSnapshot | None,
        *,
        changed: bool,
    ) -> Placement | None:
        if not changed and (snapshot is None or snapshot.blind):
            return None
        scene = self._scene(view, slots, snapshot)
        trigger = self._trigger(scene, changed=changed)
        if trigger is None or not scene.classes:
            return None
        return self._decide(trigger, scene)

    def _scene(
        self, view: ClusterView, slots: tuple[Slot, ...], snapshot: MonitorSnapshot | None
    ) -> _Scene:
        known = merged(self._demand, self._always, Demand(tuple(self._seen.values())))
        slots, memory = self._usable(slots, view, known)
        demand = self._absolute(memory, len(slots))
        loads = price_all(merged(demand, known.silenced()), self._cost)
        classes = wanted(loads, memory, faithful=self._faithful)
        possible = {(item.load.model, item.load.demand.shape) for item in classes}
        return _Scene(
            now_s=view.now_s,
            window_s=self._knobs.cooldown_s if snapshot is None else snapshot.window_s,
            slots=slots,
            nodes=nodes_of(self._roles, slots),
            memory=memory,
            demand=demand,
            classes=classes,
            impossible=tuple(
                load.demand for load in loads if (load.model, load.demand.shape) not in possible
            ),
        )

    def _usable(
        self, slots: tuple[Slot, ...], view: ClusterView, demand: Demand
    ) -> tuple[tuple[Slot, ...], Memory]:
        """Return the most devices with which the most classes can be served, and their memory.

        All devices of a plan count as the smallest of them, so devices that are too small for a
        class that larger ones could serve are left out.
        """
        tiers = []
        for least in sorted({slot.capacity_bytes for slot in slots}):
            large = tuple(slot for slot in slots if slot.capacity_bytes >= least)
            widest = max(len(node) for node in by_node(large).values())
            capacity = least - self._knobs.reserve_bytes
            tiers.append((large, Memory(view.weight_bytes, capacity, widest, self._swapped)))
        if len(tiers) == 1:
            return tiers[0]
        loads = price_all(demand, self._cost)
        return max(tiers, key=lambda tier: len(wanted(loads, tier[1])))

    def _absolute(self, memory: Memory, devices: int) -> Demand:
        """Return the demand; one of unknown rate is scaled to the target load.

        Models are taken to be as busy as one another: that all sizes of all are asked for as often
        would leave next to nothing for a model whose requests are cheap.
        """
        if not self._demand.is_relative:
            return self._demand
        work: defaultdict[ModelId, float] = defaultdict(float)
        for item in wanted(price_all(self._demand, self._cost), memory, faithful=self._faithful):
            work[item.load.model] += item.work + item.load.rate_per_s * _beside(item)
        busy = [model for model, seconds in work.items() if seconds > 0]
        each = self._knobs.target_load * devices / max(1, len(busy))
        return self._demand.scaled({model: each / work[model] for model in busy})

    def _trigger(self, scene: _Scene, *, changed: bool) -> Trigger | None:
        """Return what asks for a deliberation now, if anything does."""
        if not self._version:
            return Trigger.BOOTSTRAP
        if changed:
            return Trigger.DEVICES
        if self._unserved(scene):
            return Trigger.UNSERVED
        unbalanced = self._balance(scene).imbalance() >= self._knobs.imbalance
        moved = total_variation(work_mix(scene.classes), self._mix)
        shifted = moved > self._knobs.mix_shift
        stood = {
            trigger: self._signs.note(trigger, shown=shown, now_s=scene.now_s, for_s=scene.window_s)
            for trigger, shown in ((Trigger.IMBALANCE, unbalanced), (Trigger.MIX, shifted))
        }
        if scene.now_s < max(self._quiet_until_s, self._think_again_s):
            return None
        return next((trigger for trigger, long_enough in stood.items() if long_enough), None)

    def _unserved(self, scene: _Scene) -> list[Wanted]:
        return unserved(scene.classes, scene.nodes, scene.memory)

    def _balance(self, scene: _Scene) -> Balance:
        return sustained(
            scene.classes, scene.nodes, scene.memory, fragmentation=self._knobs.fragmentation
        )

    def _decide(self, trigger: Trigger, scene: _Scene) -> Placement | None:
        drafter = Drafter(scene.classes, scene.slots, scene.memory, self._knobs)
        draft = drafter.paper(self._videos) if self._faithful else drafter.best(self._videos)
        check_integrity(
            draft.roles,
            scene.slots,
            scene.classes,
            msgspec.structs.replace(scene.memory, swapped=draft.swapped),
        )
        now = self._balance(scene) if self._version else None
        loads = extra_loads(draft.roles, self._roles, scene.slots, self._cost)
        verdict = self._verdict(trigger, scene, draft, now, loads)
        self._signs.clear()
        self._think_again_s = scene.now_s + scene.window_s
        self._planned_for, self._mix = scene.demand, work_mix(scene.classes)
        if verdict.switch:
            self._version += 1
            self._roles, self._swapped = dict(draft.roles), draft.swapped
            self._quiet_until_s = scene.now_s + max(self._knobs.cooldown_s, 2 * loads.longest_s)
        self._last = Decision(
            at_s=scene.now_s,
            trigger=trigger,
            switched=verdict.switch,
            reason=verdict.reason,
            version=self._version,
            recipe=draft.recipe,
            sustains_now=None if now is None else now.factor,
            sustains_new=draft.balance.factor,
            ratios=(now or draft.balance).ratios,
            counts=draft.counts(),
            load_s=loads.total_s,
            demand=scene.demand,
            swapped=tuple(d for d, role in self._roles.items() if role in self._swapped),
            impossible=scene.impossible,
        )
        return self._placement(draft, trigger, verdict)

    def _placement(self, draft: Draft, trigger: Trigger, verdict: Verdict) -> Placement | None:
        if not verdict.switch:
            return None
        cause = trigger.value.replace("_", " ")
        return Placement(self._version, dict(draft.roles), f"{cause}: {verdict.reason}")

    def _verdict(
        self, trigger: Trigger, scene: _Scene, draft: Draft, now: Balance | None, loads: Loads
    ) -> Verdict:
        """Return whether to adopt the draft: when something forces it, or when it is worth it."""
        if now is None:
            return Verdict(switch=True, reason="There was no placement yet.")
        present = {slot.id: self._roles.get(slot.id, frozenset[StageKey]()) for slot in scene.slots}
        if draft.roles == present:
            self._swapped = draft.swapped  # the same roles may have come to swap, or no longer do
            return Verdict(switch=False, reason="The present placement is the best one known.")
        if lost := self._unserved(scene):
            named = ", ".join(f"{i.load.model} {i.load.demand.shape}" for i in lost[:3])
            return Verdict(switch=True, reason=f"No team could serve {named}.")
        if not all(present.values()) and draft.balance.factor >= now.factor:
            return Verdict(switch=True, reason="Devices without a role get one.")
        if self._faithful:
            return Verdict(switch=True, reason="The paper's rule switches whenever it triggers.")
        return weigh(
            draft.balance,
            now,
            loads,
            devices=len(scene.slots),
            knobs=self._knobs,
            requests=self._sample,
            mend=trigger is Trigger.DEVICES,
        )


def _beside(item: Wanted) -> float:
    """Return seconds of encode and decode."""
    return item.load.encode_s + item.load.decode_s

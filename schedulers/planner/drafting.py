"""Drafting: from demand and devices to the best placement that the recipes offer.

Every recipe is laid out, judged by the fluid model and dropped if it leaves a class without a
team. Among those near the best, most primaries in whole blocks win, then none beside them, then the
objective, then the fewest bytes to load. If none is left, stages are swapped: slow, but nothing becomes impossible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.types import DeviceId, ModelId
from schedulers.planner.capacity import Balance, sustained
from schedulers.planner.integrity import unserved
from schedulers.planner.knobs import PlannerKnobs
from schedulers.planner.packing import Layout, Recipe, Seating, lay_out, seat
from schedulers.planner.paper import paper_recipe
from schedulers.planner.recipes import Means, proposals, swapping
from schedulers.planner.replicas import Memory, Role, Wanted
from schedulers.planner.roster import Slot, by_node
from schedulers.planner.switching import EQUAL


class Draft(msgspec.Struct, frozen=True):
    """A placement that could be adopted."""

    recipe: str
    roles: Mapping[DeviceId, Role]
    balance: Balance
    swapped: frozenset[Role]

    def counts(self) -> dict[str, int]:
        """Return devices per role, roles as text."""
        named = Counter("+".join(str(stage) for stage in sorted(r)) for r in self.roles.values())
        return dict(sorted(named.items()))


class _Judged(msgspec.Struct, frozen=True):
    """A recipe on nodes, with what it sustains."""

    recipe: Recipe
    layout: Layout
    balance: Balance


class Drafter:
    """Drafts placements for one moment: these classes on these devices."""

    def __init__(
        self,
        classes: Sequence[Wanted],
        slots: tuple[Slot, ...],
        memory: Memory,
        knobs: PlannerKnobs,
    ) -> None:
        """Take what has to be served and with what."""
        self._classes, self._slots = classes, slots
        plain = msgspec.structs.replace(memory, swapped=frozenset())
        self._means = Means(plain, len(slots), knobs)
        self._sizes = [len(node) for node in by_node(slots).values()]

    def best(self, videos: frozenset[ModelId]) -> Draft:
        """Return the best draft of ours; swapped if nothing else serves all classes."""
        judged = self._judge(proposals(self._classes, self._means, videos))
        if not judged:
            judged = self._judge(swapping(self._classes, self._means))[:1]
        seated = [(item, self._seat(item)) for item in self._finalists(judged)]
        chosen, seating = min(seated, key=lambda pair: pair[1].load_bytes)
        return self._draft(chosen, seating)

    def paper(self, videos: frozenset[ModelId]) -> Draft:
        """Return Algorithm 2's draft; ours where that would leave a class without a team."""
        recipe = paper_recipe(self._classes, len(self._slots))
        judged = self._judge([recipe] if recipe else [])
        return self._draft(judged[0], self._seat(judged[0])) if judged else self.best(videos)

    def _judge(self, recipes: Iterable[Recipe]) -> list[_Judged]:
        orders = (True, False) if len(set(self._sizes)) > 1 else (True,)
        layouts = [
            (recipe, lay_out(recipe, self._sizes, broken_first=first))
            for recipe in recipes
            for first in orders
        ]
        return [
            _Judged(recipe, layout, self._balance(recipe, layout.nodes))
            for recipe, layout in layouts
            if not unserved(self._classes, layout.nodes, self._memory(recipe))
        ]

    def _finalists(self, judged: Sequence[_Judged]) -> list[_Judged]:
        """Return the drafts that differ in nothing but their loads."""
        top = max(item.balance.factor for item in judged)
        near = top * (1.0 - self._means.knobs.whole_blocks)
        good = [item for item in judged if item.balance.factor >= near]
        neatest = min(_untidiness(item.balance) for item in good)
        tidy = [item for item in good if _untidiness(item.balance) == neatest]
        bar = max(item.balance.factor for item in tidy) * (1.0 - EQUAL)
        return [item for item in tidy if item.balance.factor >= bar]

    def _memory(self, recipe: Recipe) -> Memory:
        return msgspec.structs.replace(self._means.memory, swapped=recipe.swapped)

    def _balance(self, recipe: Recipe, nodes: Sequence[Counter[Role]]) -> Balance:
        knobs, memory = self._means.knobs, self._memory(recipe)
        return sustained(self._classes, nodes, memory, fragmentation=knobs.fragmentation)

    def _seat(self, judged: _Judged) -> Seating:
        return seat(judged.layout, self._slots, self._means.memory.weight_bytes)

    @staticmethod
    def _draft(judged: _Judged, seating: Seating) -> Draft:
        recipe = judged.recipe
        return Draft(recipe.name, seating.roles, judged.balance, recipe.swapped)


def _untidiness(balance: Balance) -> tuple[int, bool]:
    """Order placements by whole blocks: most devices in them, then none beside them."""
    return -balance.wide, balance.loose > 0

"""What the planner needs of a cost model, as protocols.

The planner prices *classes* of requests, never single ones, and it never teaches the cost model:
online corrections reach it because the same model object learns from stage reports elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.types import GenerationRequest, ModelId, Shape, StageKey


class StageEstimate(Protocol):
    """What one execution of a stage is expected to take."""

    @property
    def duration_s(self) -> float:
        """Seconds from start to end on a team of the asked degree."""
        ...

    @property
    def activation_bytes(self) -> int:
        """Peak bytes on each device of the team, without weights."""
        ...


class StageCost(Protocol):
    """Prices stages; `schedulers.cost.CostModel` is one."""

    def estimate(
        self, stage: StageKey, request: GenerationRequest, *, degree: int = 1, batch: int = 1
    ) -> StageEstimate:
        """Return what `stage` of `request` takes on `degree` devices."""
        ...

    def degrees(self, model: ModelId) -> Sequence[int]:
        """Return the parallel degrees that the model's diffuse stage knows."""
        ...

    def min_degree(self, model: ModelId, shape: Shape) -> int:
        """Return the least degree whose activations fit the profiled device."""
        ...

    def load_s(self, stage: StageKey, *, from_peer: bool) -> float:
        """Return seconds to load a stage's weights, from a peer of the node or from the host."""
        ...

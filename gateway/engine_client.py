"""What the gateway needs of engines, wherever they run. Tests bring a fake.

`Catalogue` is what the API asks; `EngineClient` is what a runner drives besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engine import ALONE, Along

if TYPE_CHECKING:
    from engine import GenerationRequest, GenerationResult, ModelId, PipelineSpec, RequestId
    from engine.journal import Journal
    from gateway.jobs.record import StageDecision


@runtime_checkable  # litestar checks what it injects
class Catalogue(Protocol):
    """The models that are served, and what they take."""

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by the name that clients use."""
        ...

    @property
    def devices(self) -> int:
        """Devices of all engines that live; 0 if none does."""
        ...

    def latency_s(self, request: GenerationRequest) -> float:
        """Return how long a request takes alone; deadlines are multiples of it."""
        ...

    def work_s(self, request: GenerationRequest) -> float:
        """Return the device-seconds that a request takes."""
        ...

    def knows(self, request: GenerationRequest) -> bool:
        """Return whether these figures were measured, and not only guessed."""
        ...

    def readiness(self) -> tuple[str, ...]:
        """Return the reasons why a request would not succeed now; empty means ready."""
        ...

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should look at although requests succeed."""
        ...


@runtime_checkable
class EngineClient(Catalogue, Protocol):
    """An engine of this process."""

    def learnt(self) -> bytes:
        """Return what its cost model has learnt, for catalogues in other processes."""
        ...

    async def start(self) -> None:
        """Start what runs stages; returns once it can take requests."""
        ...

    async def generate(
        self, request: GenerationRequest, journal: Journal, along: Along = ALONE
    ) -> GenerationResult:
        """Run a request to its end, but for what `journal` has kept of an earlier try.

        Cancelling the call cancels the request.

        Raises:
            EngineError: the request cannot be, or was not, done.
        """
        ...

    def explain(self, request: RequestId) -> tuple[StageDecision, ...]:
        """Return the scheduler's last word on each stage of a request; none if it is not here."""
        ...

    async def revive(self) -> bool:
        """Start anew if the engine stopped by itself; return whether it runs now."""
        ...

    def progress(self, request: RequestId) -> float:
        """Return the share of its denoise steps that a request has done; 0 if it is not here."""
        ...

    async def suspend(self, timeout_s: float) -> None:
        """Stop what runs at its next step, so that the next engine can go on from there."""
        ...

    async def close(self) -> None:
        """Stop everything; idempotent."""
        ...

"""What the gateway needs of an engine, wherever it runs. Tests bring a fake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from engine import GenerationRequest, GenerationResult, ModelId, PipelineSpec, RequestId


@runtime_checkable  # litestar checks what it injects
class EngineClient(Protocol):
    """An engine with the models it serves."""

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """Models by the name that clients use."""
        ...

    def latency_s(self, request: GenerationRequest) -> float:
        """Return how long a request takes alone; deadlines are multiples of it."""
        ...

    async def start(self) -> None:
        """Start what runs stages; returns once it can take requests."""
        ...

    async def generate(self, request: GenerationRequest) -> GenerationResult:
        """Run a request to its end; cancelling the call cancels the request.

        Raises:
            EngineError: the request cannot be, or was not, done.
        """
        ...

    async def revive(self) -> bool:
        """Start anew if the engine stopped by itself; return whether it runs now."""
        ...

    def progress(self, request: RequestId) -> float:
        """Return the share of its denoise steps that a request has done; 0 if it is not here."""
        ...

    def readiness(self) -> tuple[str, ...]:
        """Return the reasons why a request would not succeed now; empty means ready."""
        ...

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should look at although requests succeed."""
        ...

    async def close(self) -> None:
        """Stop everything; idempotent."""
        ...

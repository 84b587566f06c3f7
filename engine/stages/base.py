"""What every stage is to a worker, and what a family must know to be run stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from engine.types import Artifact, GenerationRequest, StageTask

OnStep = Callable[[int, int], None]


class CancelledAtStep(Exception):  # noqa: N818 - control flow between worker and stage, no error
    """The task was told to stop; raised from the step callback, at a step boundary."""

    def __init__(self, steps_done: int) -> None:
        """Remember how far it came."""
        super().__init__(f"cancelled after {steps_done} steps")
        self.steps_done = steps_done


class StageResult(NamedTuple):
    """Tensors for the next stage, or the finished artifact of the last one."""

    tensors: Mapping[str, Tensor]
    artifact: Artifact | None = None


class Stage(Protocol):
    """Loaded weights of one stage; dropping the last reference unloads them."""

    def run(self, task: StageTask, inputs: Mapping[str, Tensor], on_step: OnStep) -> StageResult:
        """Run one task. `on_step(step, steps)` is called after every denoise step."""
        ...


class Trajectory(Protocol):
    """One request half-way through its denoise loop: latent, step and sampler state."""

    latents: Tensor
    step: int
    steps: int

    def advance(self) -> None:
        """Do one denoise step."""
        ...


class FamilyCode(Protocol):
    """The three stages of one diffusers pipeline class.

    `pipe` is that pipeline with only the stage's own components loaded. The arithmetic follows
    the library's order of operations, so that results are bit-equal to the monolithic call.
    """

    def encode(self, pipe: Any, request: GenerationRequest) -> dict[str, Tensor]:
        """Return the conditioning tensors of a prompt."""
        ...

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
    ) -> Trajectory:
        """Return a trajectory at step 0, with noise drawn from `seed`."""
        ...

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels in [-1, 1], (1, 3, H, W)."""
        ...

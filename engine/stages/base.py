"""What every stage is to a worker, and what a family must know to be run stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.stages.team import Team
from engine.types import Artifact, GenerationRequest, StageTask


class CancelledAtStep(Exception):  # noqa: N818 - control flow between worker and stage, no error
    """The task was told to stop; raised by `Boundary.passed`."""

    def __init__(self, steps_done: int) -> None:
        """Remember how far it came."""
        super().__init__(f"cancelled after {steps_done} steps")
        self.steps_done = steps_done


class Snapshot(NamedTuple):
    """Where a trajectory stands between two steps: `outline` is JSON that names `tensors`."""

    tensors: Mapping[str, Tensor]
    outline: str


class Boundary(Protocol):
    """Who is told of every denoise step, and who may want a diffuse to stop between two."""

    @property
    def wants_pause(self) -> bool:
        """Whether the diffuse should save where it stands and return."""
        ...

    @property
    def wants_save(self) -> bool:
        """Whether the diffuse should save where it stands and go on."""
        ...

    def keep(self, snapshot: Snapshot) -> None:
        """Take what was saved, for whoever goes on if this worker does not."""
        ...

    def passed(self, step: int, steps: int) -> None:
        """Step `step` of `steps` is done; raises `CancelledAtStep` to end the task here."""
        ...

    def show(self, index: int, latents: Tensor) -> None:
        """Leave a predicted clean latent to be decoded as preview number `index`."""
        ...


class Undisturbed:
    """A boundary at which nobody listens and nothing is said."""

    wants_pause = wants_save = False

    def keep(self, snapshot: Snapshot) -> None:
        """Never called: nothing is to be saved."""
        raise AssertionError(snapshot)

    def passed(self, step: int, steps: int) -> None:
        """Go on."""

    def show(self, index: int, latents: Tensor) -> None:
        """Show nobody."""


class StageResult(NamedTuple):
    """Tensors for the next stage, the finished artifact of the last one, or a paused diffuse.

    Or nothing: `cancelled` tells that this job of a launch was told to stop and others went on.
    """

    tensors: Mapping[str, Tensor]
    artifact: Artifact | None = None
    snapshot: Snapshot | None = None
    cancelled: bool = False


class Job(NamedTuple):
    """One task of a launch with what it needs; a diffuse goes on from `snapshot` if there is one."""

    task: StageTask
    inputs: Mapping[str, Tensor]
    boundary: Boundary
    snapshot: Snapshot | None = None


class Stage(Protocol):
    """Loaded weights of one stage; dropping the last reference unloads them."""

    def run(self, jobs: Sequence[Job], team: Team) -> list[StageResult]:
        """Run the tasks of a launch, together with the other members of `team`.

        Every member gets the same jobs; the leader's results count.
        """
        ...


class Repaint(Protocol):
    """Keeps the black parts of a mask as they are in the source."""

    def blend(self, latents: Tensor, timestep: Tensor | None) -> Tensor:
        """Return latents with the kept parts put back, as noisy as at `timestep`; None: clean."""
        ...


class Evaluation(NamedTuple):
    """One evaluation of the denoiser: what went in, what came out, guidance applied, and when."""

    latents: Tensor
    output: Tensor
    timestep: Tensor


class Call(NamedTuple):
    """What a step asks of the denoiser `model`.

    `rows` are arguments with a row or more per branch of guidance in front, the latents first, and
    `shared` what all requests of one shape have in common: several calls can be made as one.
    """

    model: Callable[..., Any]
    rows: Mapping[str, Tensor]
    shared: Mapping[str, Any]

    @property
    def row_count(self) -> int:
        """Rows of its latents, and of the output that belongs to it."""
        return len(next(iter(self.rows.values())))


class Trajectory(Protocol):
    """One request half-way through its denoise loop.

    A step is `advance`, or `take` of what somebody else had the denoiser answer to `ask`.

    Attributes:
        scheduler: the request's own sampler, with all that it remembers between steps.
        last: the evaluation of the last step; None before the first.
        repaint: what a masked source keeps; None without one.
    """

    latents: Tensor
    step: int
    steps: int
    scheduler: Any
    last: Evaluation | None
    repaint: Repaint | None

    @property
    def generator(self) -> torch.Generator | None:
        """What steps draw their noise from; None if they draw none."""
        ...

    def advance(self) -> None:
        """Do one denoise step, together with the team."""
        ...

    def ask(self) -> Call:
        """Return what this step asks of the denoiser, of a team of one."""
        ...

    def take(self, output: Tensor) -> None:
        """End the step with the denoiser's output (row_count, ...), before guidance."""
        ...


class FamilyCode(Protocol):
    """The three stages of one diffusers pipeline class.

    `pipe` is that pipeline with only the stage's own components loaded. The arithmetic follows
    the library's order of operations, so that results are bit-equal to the monolithic call.
    """

    def encode(self, pipe: Any, requests: Sequence[GenerationRequest]) -> list[dict[str, Tensor]]:
        """Return each request's conditioning tensors; all are guided, or none is."""
        ...

    def begin(
        self,
        pipe: Any,
        request: GenerationRequest,
        seed: int,
        inputs: Mapping[str, Tensor],
        team: Team,
    ) -> Trajectory:
        """Return a trajectory at step 0, with noise drawn from `seed`.

        Its latents are whole and the same on every member of `team` after each step.
        """
        ...

    def decode(self, pipe: Any, request: GenerationRequest, latents: Tensor) -> Tensor:
        """Return pixels in [-1, 1], (B, 3, H, W) or (B, 3, F, H, W), of outputs like `request`'s."""
        ...

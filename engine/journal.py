"""What the owner of a request writes down while it runs, so that another engine can go on.

A hand-off lies in the shared memory of one machine and dies with its engine. Whoever keeps copies
of finished stages can hand them to `EngineCore.generate` again, anywhere: then at most the stage
that was running is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.types import Artifact, HandoffRef, NodeId, StageTiming


class FinishedStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that another engine finished: its hand-off's bytes, or its artifact.

    `content` is None for artifacts, and for hand-offs that were not kept.
    """

    node: NodeId
    timing: StageTiming
    content: bytes | None = None
    artifact: Artifact | None = None


class Journal(Protocol):
    """What a request's owner knows from before, and what it hears while the request runs."""

    @property
    def finished(self) -> Sequence[FinishedStage]:
        """Stages that need not run again; asked once, when the request is admitted."""
        ...

    def stage_finished(
        self, timing: StageTiming, output: HandoffRef | None, artifact: Artifact | None
    ) -> None:
        """Hear of a finished stage, on the engine's loop; must return at once.

        The file of `output` exists during the call, and afterwards until its last consumer is
        done: whoever wants it opens it now.
        """
        ...

"""Previews: latents that are not finished, on their way to pictures that show how far they are.

They are decoded by whoever holds the autoencoder and has nothing better to do. A preview that
comes too late is dropped; none ever changes what the request ends with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from engine.types import (
    DeviceId,
    HandoffRef,
    NodeId,
    Preview,
    Purpose,
    StageKey,
    StageKind,
    StageTask,
    TaskId,
)

if TYPE_CHECKING:
    from engine.messages import StageReport


def preview_steps(previews: int, steps: int) -> tuple[int, ...]:
    """Return after which of `steps` denoise steps an output is shown: evenly, never at the end."""
    marks = (round(steps * (i + 1) / (previews + 1)) for i in range(previews))
    return tuple(dict.fromkeys(step for step in marks if 0 < step < steps))


class Shown(NamedTuple):
    """A latent that a diffuse has just left: its preview number, where it lies, and when."""

    number: int
    latent: HandoffRef
    at_s: float


class Previews:
    """Those of one request.

    Args:
        show: told of every finished preview; None: nobody looks.
    """

    def __init__(self, show: Callable[[Preview], None] | None) -> None:
        """Begin with nothing to show."""
        self._show = show
        self._seen: set[tuple[int, int]] = set()
        self._waiting: dict[TaskId, StageTask] = {}

    def offer(
        self, diffuse: StageTask, team: tuple[DeviceId, ...], shown: Shown
    ) -> tuple[HandoffRef, ...]:
        """Take the latent that a diffuse shows; return it if nobody looks or it was shown before."""
        key = (diffuse.image_index, shown.number)
        if self._show is None or key in self._seen:
            return (shown.latent,)
        self._seen.add(key)
        node = NodeId(f"preview-{diffuse.image_index}-{shown.number}")
        task = StageTask(
            id=TaskId(f"{diffuse.request.id}/{node}"),
            request=diffuse.request,
            node=node,
            stage=StageKey(diffuse.stage.model, StageKind.DECODE),
            image_index=diffuse.image_index,
            inputs=(shown.latent,),
            sequence=diffuse.sequence,
            attempt=1,
            ready_s=shown.at_s,
            came_from=team,
            purpose=Purpose.PREVIEW,
        )
        self._waiting[task.id] = task
        return ()

    def tasks(self) -> list[StageTask]:
        """Return what waits to be decoded."""
        return list(self._waiting.values())

    def begin(self, task: StageTask) -> None:
        """Note that a preview is being decoded."""
        del self._waiting[task.id]

    def finish(self, task: StageTask, report: StageReport) -> None:
        """Show a decoded preview."""
        if self._show is not None and report.artifact is not None:
            self._show(Preview(int(task.node.rpartition("-")[2]), report.artifact))

    def drop(self, image_index: int | None = None) -> tuple[HandoffRef, ...]:
        """Give up what waits, of one output or of all; return the latents."""
        dropped = [t for t in self._waiting.values() if image_index in {None, t.image_index}]
        for task in dropped:
            del self._waiting[task.id]
        return tuple(ref for task in dropped for ref in task.inputs)

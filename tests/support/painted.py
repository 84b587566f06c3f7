"""An engine that paints in three stages that take time, and writes down every stage it begins.

Several processes can append to one log; so a test sees what was done twice, and by whom.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from engine import (
    ALONE,
    Along,
    Artifact,
    GenerationRequest,
    GenerationResult,
    ModelId,
    PipelineSpec,
    StageKind,
    StageTiming,
)
from engine.journal import Journal
from engine.types import DeviceId, HandoffRef, NodeId
from tests.support.fake_engine import FakeEngine, mp4, video_spec_of


class PaintedEngine(FakeEngine):
    """A `FakeEngine` whose stages take `stage_s` seconds each and begin where others stopped."""

    def __init__(self, folder: Path, stage_s: float) -> None:
        """Log into `folder` and hand stages over in files there."""
        super().__init__(video_spec_of())
        self._folder, self._stage_s = folder, stage_s

    @property
    def specs(self) -> Mapping[ModelId, PipelineSpec]:
        """One video model."""
        return self._specs

    async def generate(
        self, request: GenerationRequest, journal: Journal, along: Along = ALONE
    ) -> GenerationResult:
        """Run the stages that `journal` has not kept, one after the other."""
        del along  # nobody uploads or watches
        kept = {stage.node: stage.timing for stage in journal.finished}
        timeline = list(kept.values())
        for kind in StageKind:
            if NodeId(kind) in kept:
                continue
            self._log(request, kind, "begins")
            timing = _timing(kind, self._stage_s)
            await asyncio.sleep(self._stage_s)
            self._log(request, kind, "ends")
            timeline.append(timing)
            if kind is not StageKind.DECODE:
                journal.stage_finished(timing, self._hand_off(request, kind), None)
        return GenerationResult((_artifact(request),), tuple(timeline))

    def _hand_off(self, request: GenerationRequest, kind: StageKind) -> HandoffRef:
        file = self._folder / f"{request.id}-{kind}-{os.getpid()}"
        file.write_bytes(b"tensors")
        return HandoffRef(NodeId(kind), str(file), 7)

    def _log(self, request: GenerationRequest, kind: StageKind, what: str) -> None:
        line = f"{request.id} {kind} {what} {time.time():.3f} {os.getpid()}\n"
        with (self._folder / "stages.log").open("a") as log:
            log.write(line)  # one write of a short line: appends do not mix


def _timing(kind: StageKind, run_s: float) -> StageTiming:
    return StageTiming(
        node=NodeId(kind),
        stage=kind,
        device=DeviceId(f"cpu:{os.getpid()}"),
        attempt=1,
        started_s=time.time(),
        queue_wait_s=0.0,
        load_s=0.0,
        run_s=run_s,
    )


def _artifact(request: GenerationRequest) -> Artifact:
    colour = hashlib.sha256(f"{request.prompt}:{request.seed}".encode()).digest()[:3]
    content = mp4(request.shape, colour)
    return Artifact(
        index=0,
        content=content,
        media_type=request.media.media_type,
        shape=request.shape,
        seed=request.seed,
        sha256=hashlib.sha256(content).hexdigest(),
    )

"""What a runner keeps of a job while it runs: finished stages, and why each was scheduled so.

Copies of hand-offs go into the artifact store and are named in the job's row, so whoever leases
the job after its holder died repeats the running stage at most. Keeping is done beside the work:
it delays nothing, and what cannot be kept costs a repetition and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

import structlog

from engine.journal import FinishedStage
from engine.types import Artifact
from gateway.jobs.record import ArtifactFacts, KeptStage, StageDecision, fruitless
from gateway.storage.blobs import BlobMissingError

if TYPE_CHECKING:
    from engine import RequestId, StageTiming
    from engine.types import HandoffRef, NodeId
    from gateway.engine_client import EngineClient
    from gateway.jobs.leases import JobLeases
    from gateway.jobs.record import Job
    from gateway.storage.blobs import BlobStore

_STAGES: Final = "stages"

_log = structlog.get_logger(__name__)


def stages_folder(job: Job) -> str:
    """Return under which key a job's stages are kept."""
    return f"{job.id}/{_STAGES}"


class JobJournal:
    """The engine's `Journal` of one job; `load` before use, `close` afterwards."""

    def __init__(
        self, job: Job, *, engine: EngineClient, blobs: BlobStore, leases: JobLeases
    ) -> None:
        """Keep stages in `blobs` and name them in the row that `leases` holds."""
        self._job = job
        self._engine = engine
        self._blobs = blobs
        self._leases = leases
        self._kept: dict[NodeId, KeptStage] = {stage.node: stage for stage in job.kept}
        self._decisions: dict[NodeId, StageDecision] = {d.node: d for d in job.schedule}
        self._finished: list[FinishedStage] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._kept_any = False
        self.decided: tuple[object, ...] = ()

    @property
    def finished(self) -> Sequence[FinishedStage]:
        """Stages that an earlier holder of the job has finished."""
        return self._finished

    @property
    def fruitless(self) -> int:
        """How often the job was tried, this try included, since it last got any further."""
        return fruitless(self._job.attempts, tuple(self._kept.values()))

    @property
    def schedule(self) -> tuple[StageDecision, ...]:
        """The scheduler's last word on every stage so far; no more than there are stages."""
        return tuple(self._decisions.values())

    async def load(self) -> None:
        """Fetch what an earlier holder has kept; what is gone runs again."""
        self._finished.clear()
        for stage in self._kept.values():
            with suppress(BlobMissingError):
                content = await self._blobs.get(stage.blob)
                self._finished.append(_finished(stage, content))

    def stage_finished(
        self, timing: StageTiming, output: HandoffRef | None, artifact: Artifact | None
    ) -> None:
        """Keep a finished stage, in the background."""
        self.note_decisions()
        content: BinaryIO | bytes
        if artifact is not None:
            if artifact.variants:
                return  # only one file is kept per stage; this decode would run again
            content = artifact.content
        elif output is not None and not output.host:  # what lies on another node stays there
            try:
                # Open now: the engine deletes the file when its last consumer is done.
                content = open(output.path, "rb")  # noqa: PTH123, SIM115 - `_keep` closes it
            except OSError:
                return  # an engine without files
        else:
            return
        self._kept_any = True
        task = asyncio.create_task(self._keep(timing, content, artifact), name=self._job.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def note_decisions(self) -> bool:
        """Ask the engine for its last words; return whether any of them is new.

        Of a launch, what was known of it at first stays: later it has no choice and no slack any more.
        """
        request: RequestId = self._job.request.id
        for decision in self._engine.explain(request):
            known = self._decisions.get(decision.node)
            if known is None or not known.launched or _gist(known) != _gist(decision):
                self._decisions[decision.node] = decision
        gist = tuple(_gist(decision) for decision in self.schedule)
        is_new, self.decided = gist != self.decided, gist
        return is_new

    async def _keep(
        self, timing: StageTiming, content: BinaryIO | bytes, artifact: Artifact | None
    ) -> None:
        blob = f"{stages_folder(self._job)}/{timing.node}-{self._job.attempts}"
        try:
            if not isinstance(content, bytes):
                with content:
                    content = await asyncio.to_thread(content.read)
            await self._blobs.put(blob, content)
            facts = None if artifact is None else _facts(artifact)
            async with self._turn:
                self._kept[timing.node] = KeptStage(
                    timing.node, timing, blob, facts, self._job.attempts
                )
                await self._leases.keep(self._job, tuple(self._kept.values()), self.schedule)
        except Exception as error:  # noqa: BLE001 - the job goes on without it
            _log.warning("stage_not_kept", job_id=self._job.id, reason=repr(error))

    async def close(self) -> None:
        """Stop keeping; what is being written is abandoned."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def remove(self) -> None:
        """Remove what was kept by this holder or an earlier one, because the job is over."""
        if self._kept_any or self._job.attempts > 1:
            await self._blobs.delete_folder(stages_folder(self._job))


def _gist(decision: StageDecision) -> tuple[object, ...]:
    """Return what makes a decision another one, rather than the same one seen later."""
    return decision.node, decision.launched, decision.why, decision.devices, decision.expected_s


def _facts(artifact: Artifact) -> ArtifactFacts:
    return ArtifactFacts(
        artifact.index, artifact.media_type, artifact.shape, artifact.seed, artifact.sha256
    )


def _finished(stage: KeptStage, content: bytes) -> FinishedStage:
    facts = stage.artifact
    if facts is None:
        return FinishedStage(node=stage.node, timing=stage.timing, content=content)
    artifact = Artifact(
        index=facts.index,
        content=content,
        media_type=facts.media_type,
        shape=facts.shape,
        seed=facts.seed,
        sha256=facts.sha256,
    )
    return FinishedStage(node=stage.node, timing=stage.timing, artifact=artifact)

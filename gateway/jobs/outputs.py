"""A job's outputs on their way into the artifact store, and out of it if nobody may have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.jobs.record import Job, StoredArtifact, new_artifact_id

if TYPE_CHECKING:
    from engine import Artifact, GenerationResult
    from gateway.storage.blobs import BlobStore


async def publish(blobs: BlobStore, job: Job, result: GenerationResult) -> list[StoredArtifact]:
    """Store the bytes before the row says so: the table never names a blob that is not there."""
    published = []
    for artifact in result.artifacts:
        stored = _stored(job, artifact)
        await blobs.put(stored.blob, artifact.content)
        published.append(stored)
    return published


async def withdraw(blobs: BlobStore, artifacts: Sequence[StoredArtifact]) -> None:
    """Remove what was published for a job that was deleted, or lost to another runner."""
    await blobs.delete([artifact.blob for artifact in artifacts])


def _stored(job: Job, artifact: Artifact) -> StoredArtifact:
    identifier = new_artifact_id()
    return StoredArtifact(
        id=identifier,
        index=artifact.index,
        blob=f"{job.id}/{identifier}.{job.request.media.value}",
        media_type=artifact.media_type,
        width_px=artifact.shape.width_px,
        height_px=artifact.shape.height_px,
        size_bytes=len(artifact.content),
        seed=artifact.seed,
        sha256=artifact.sha256,
    )
